"""Compares our evaluation speed with that of lm-eval's own `hf` backend on the same model and tasks:
`make bench-eval EVAL_DATA=folder`.

The model is a GPT-2 of 14M parameters (6 layers of width 384, a vocabulary of 8,192, 256 positions) with random
weights, exported to Hugging Face's format. Both backends get the same requests as token ids, in turns, on one thread,
and their CPU time is measured. Read the ratios, each within one precision. All log-likelihoods are compared in fp32,
and the metrics in both precisions.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1"}

import numpy as np
import torch

from ablations.config import resolve
from eval.export_tokenizer import convert_tokenizer
from eval.tasks import harness, mirror
from eval.tasks.definitions import definitions
from eval.tasks.scorer import Scorer
from model import hub
from model.gpt import GPT

# {form of the requests: tasks with such requests}
TASKS = {
    "four choices, shared context": ["hellaswag", "sciq", "arc_easy"],
    "two one-token choices, shared context": ["boolq", "sst2"],
    "one continuation": ["lambada_openai"],
    "two contexts, one continuation": ["winogrande"],
}


def models(data: mirror.Mirror, folder: Path, run: Any) -> tuple[GPT, Any]:
    """Make a model with random weights and a tokenizer trained on the tasks' text. Returns (the model, the tokenizer);
    both are also written to `folder` in Hugging Face's format. `data`: the task data; `run`: the model's settings."""
    from data.tokenizer import load_tokenizer, train

    texts = [
        str(value)
        for source in list(data.entries)[:40]
        for row in data.table(source)
        for value in row.values()
        if isinstance(value, str)
    ]
    (folder / "tokenizer.model").write_bytes(train(texts, sum(map(len, texts)), run.model.vocab))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    gpt = GPT(run.model, seed=1).eval()
    with torch.no_grad():
        for p in gpt.parameters():  # sharper than at the start of training, so that choices differ
            p.mul_(3) if p.dim() > 1 else p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    hub.save_checkpoint(run.model, gpt.state_dict(), folder, tokenizer.eod)
    convert_tokenizer(tokenizer, run.model.seq).save_pretrained(folder)
    return gpt, tokenizer


def encode(scorer: Scorer, task: Any) -> list[tuple]:
    """The requests of a task as lm-eval hands them to a model."""
    encoded: list[tuple] = []
    scorer._loglikelihood_tokens = lambda requests, **_: encoded.extend(requests) or []  # type: ignore[method-assign]
    scorer.loglikelihood(task.instances)
    return encoded


def metrics(task: Any, scores: list[tuple[float, bool]]) -> dict[str, float]:
    """lm-eval's metrics of a task, as means over documents: {"acc": ..., "acc_norm": ...}, as far as the task has them.
    `scores`: (log-likelihood, whether the continuation is greedy) for each request."""
    answers: dict[int, list] = {}
    docs = {}
    for request, score in zip(task.instances, scores, strict=True):
        answers.setdefault(request.doc_id, []).append(score)
        docs[request.doc_id] = request.doc
    rows = [task.process_results(docs[i], of_doc) for i, of_doc in answers.items()]
    return {key: float(np.mean([row[key] for row in rows])) for key in ("acc", "acc_norm") if key in rows[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of task data (make eval-data)")
    parser.add_argument("--items", type=int, default=40, help="of each task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hf-batch", type=int, default=16, help="rows of a batch of lm-eval's backend")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    data, run = mirror.Mirror(args.data), resolve([("size", "14m"), ("train.precision", "fp32")])
    names = [name for each in TASKS.values() for name in each]
    built = {name: harness.build_task(definition, data) for name, definition in definitions(names).items()}
    for task in built.values():
        task.build_all_requests(limit=args.items, rank=0, world_size=1)

    with tempfile.TemporaryDirectory() as place:
        gpt, tokenizer = models(data, Path(place), run)
        from lm_eval.models.huggingface import HFLM

        def theirs(dtype: str, cache: bool = True) -> Any:
            return HFLM(pretrained=place, device="cpu", dtype=dtype, batch_size=args.hf_batch, logits_cache=cache)

        encoded = {name: encode(Scorer(gpt, tokenizer, 256), task) for name, task in built.items()}
        half = GPT(run.model, seed=1).eval()
        half.load_state_dict(gpt.state_dict())
        made = {
            "hf fp32": theirs("float32"),
            "ours fp32": (gpt, tokenizer),
            "hf bf16": theirs("bfloat16"),
            "ours bf16": (half.bfloat16(), tokenizer),
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        answers: dict[tuple[str, str], list] = {}
        for _ in range(args.rounds):
            for name in built:
                for label, model in made.items():
                    lm = Scorer(*model, window=256) if isinstance(model, tuple) else model
                    began = time.process_time()
                    answers[name, label] = lm._loglikelihood_tokens(encoded[name], disable_tqdm=True)
                    seconds.setdefault((name, label), []).append(time.process_time() - began)
        exact = theirs("float32", cache=False)
        plain = {name: exact._loglikelihood_tokens(each, disable_tqdm=True) for name, each in encoded.items()}

    print(f"hf: batches of {args.hf_batch}; {args.items} items of each task, {args.rounds} rounds, fastest counts\n")
    print(
        "| requests | number | hf fp32, requests per CPU second | ours fp32 / hf fp32 | "
        "hf bf16, requests per CPU second | ours bf16 / hf bf16 |\n|---|---|---|---|---|---|"
    )
    for kind, members in TASKS.items():
        number = sum(len(built[name].instances) for name in members)
        took = {label: sum(min(seconds[name, label]) for name in members) for label in made}
        speeds = " | ".join(
            f"{number / took[f'hf {precision}']:.1f} | {took[f'hf {precision}'] / took[f'ours {precision}']:.2f}"
            for precision in ("fp32", "bf16")
        )
        print(f"| {kind}: {', '.join(members)} | {number} | {speeds} |")
    print(
        "\n| task | largest difference of a log-likelihood, fp32 | greedy differs | hf's cache differs | "
        "metrics: hf, ours in fp32 | ours in bf16 |\n|---|---|---|---|---|---|"
    )
    wrong = 0
    for name, task in built.items():
        theirs_, ours = plain[name], answers[name, "ours fp32"]
        apart = max(abs(a - b) for (a, _), (b, _) in zip(theirs_, ours, strict=True))
        greedy = sum(a != b for (_, a), (_, b) in zip(theirs_, ours, strict=True))
        cached = sum(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(theirs_, answers[name, "hf fp32"], strict=True))
        own = [metrics(task, each) for each in (theirs_, ours, answers[name, "ours bf16"])]
        wrong += apart > 1e-4 or greedy > 0 or own[0] != own[1]
        print(
            f"| {name} | {apart:.1e} | {greedy} | {cached} | "
            + " | ".join(["; ".join(str({k: round(v, 4) for k, v in each.items()}) for each in own[:2]), str(own[2])])
            + " |"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
