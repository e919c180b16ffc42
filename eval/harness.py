"""Our model as an lm-eval model, and our tasks as lm-eval tasks. The only file that knows lm_eval."""

import logging
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

# Set before `datasets` is imported, which reads them then: nothing of this is on the hub, and asking takes 25
# s.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has a bar for every step; `progress` is enough

import torch
from datasets import Dataset
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

Tokens = tuple[int, ...]


class Scorer(TemplateLM):
    """Log-likelihoods of text under a GPT, in nats.

    model: with `hidden` [B, T] -> [B, T, D], `project` [..., D] -> [..., V] and `max_length`; on any device.
    tokenizer: with `encode(text) -> ids` and `eod`, the id that begins a document.
    window: tokens that the model is given at a time for held-out loss: the training length, in every arm.
    batch: tokens of a forward pass, padding included.
    progress: called after every forward pass with the tokens done and the tokens in all.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        window: int,
        batch: int = 4096,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        super().__init__()
        self.model, self.eod, self.window = model.eval(), tokenizer.eod, window
        self.batch, self.progress = batch, progress
        self.encode = lru_cache(maxsize=None)(lambda text: tuple(tokenizer.encode(text)))

    @property
    def eot_token_id(self) -> int:
        return self.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.encode(string))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of whole texts: every token once, in disjoint windows, the first of them after
        `eod`."""
        windows = [
            [make_disjoint_window(pair) for pair in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eod, max_seq_len=self.window, context_len=1)]
            for request in requests
        ]  # fmt: skip
        scores = iter(self.score([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        raise NotImplementedError("this model only scores text: tasks of type generate_until cannot be run")

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for (_, continuation), _, ids in requests:
            if not ids:
                raise ValueError(f"the tokenizer leaves no token to the continuation {continuation!r}")
        return self.score([(context or [self.eod], continuation) for _, context, continuation in requests])

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """For token ids (given, scored): log p(scored | given), and whether each scored token is the
        likeliest.

        Where the model has a longest input, what is given is cut from the left; elsewhere nothing is.
        """
        longest = self.model.max_length
        inputs: list[Tokens] = []
        for given, scored in pairs:
            if longest and len(scored) > longest:
                raise ValueError(f"{len(scored)} tokens to score; this model's longest input has {longest}")
            inputs.append(tuple((given + scored)[:-1][-longest:] if longest else (given + scored)[:-1]))

        # Attention is causal, so an input that another one begins with needs no pass of its own: four choices
        # of one word are a single pass. In lexicographic order an input stands right before those that begin
        # with it.
        serves: dict[Tokens, Tokens] = {}
        after: Tokens = ()
        for tokens in sorted(set(inputs), reverse=True):
            serves[tokens] = serves[after] if after[: len(tokens)] == tokens else tokens
            after = tokens
        wanted: dict[Tokens, list[int]] = {}
        for i, tokens in enumerate(inputs):
            wanted.setdefault(serves[tokens], []).append(i)

        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        device = next(self.model.parameters()).device
        done, total = 0, sum(map(len, wanted))
        for group in batches(sorted(wanted, key=lambda tokens: (-len(tokens), tokens)), self.batch):
            x_BT = torch.zeros(len(group), len(group[0]), dtype=torch.long)  # padded on the right
            for row, tokens in enumerate(group):
                x_BT[row, : len(tokens)] = torch.tensor(tokens)
            x_BTD = self.model.hidden(x_BT.to(device))
            for row, tokens in enumerate(group):
                for i in wanted[tokens]:
                    target_T = torch.tensor(pairs[i][1], device=device)
                    end = len(inputs[i])
                    logits_TV = self.model.project(x_BTD[row, end - len(target_T) : end])
                    logp_TV = logits_TV.float().log_softmax(-1)
                    greedy = bool((logp_TV.argmax(-1) == target_T).all())
                    results[i] = (logp_TV.gather(1, target_T[:, None]).sum().item(), greedy)
            done += sum(map(len, group))
            self.progress(done, total)
        return results


def batches(inputs: Iterable[Tokens], most: int) -> Iterable[list[Tokens]]:
    """Cuts inputs, longest first, into batches of at most so many tokens with padding, and at least one
    input."""
    group: list[Tokens] = []
    for each in inputs:
        if group and (len(group) + 1) * len(group[0]) > most:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def task(name: str, spec: dict, items: list[dict]) -> ConfigurableTask:
    """An lm-eval task of items in memory (see eval/probes.py), scored as its entry in tasks.yaml says."""
    kind = spec["output_type"]
    metrics = {spec["metric"]: "bits_per_byte" if kind == "loglikelihood_rolling" else "mean"}
    if kind == "loglikelihood":
        metrics["perplexity"] = "perplexity"
    if kind == "multiple_choice":
        metrics["acc"] = "mean"
    return ConfigurableTask(config={
        "task": name,
        "output_type": kind,
        "metric_list": [{"metric": metric, "aggregation": aggregation,
                         "higher_is_better": metric not in ("perplexity", "bits_per_byte")}
                        for metric, aggregation in metrics.items()],
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "context",
        "doc_to_target": "target",
        "target_delimiter": "",
        **({"doc_to_choice": "choices"} if kind == "multiple_choice" else {}),
    })  # fmt: skip


def evaluate(scorer: Scorer, tasks: dict[str, tuple[dict, list[dict]]]) -> dict[str, dict]:
    """Runs tasks {name: (its entry in tasks.yaml, items)} through lm-eval.

    Returns: {name: {"value": the task's metric, "acc" of choices and "perplexity" of words, "context_tokens":
        [least, most], "samples": [{"id", "value": 0 or 1} or {"id", "nats", "bytes"}, ...] in the order of
        the items}}.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    made = {name: task(name, spec, items) for name, (spec, items) in tasks.items()}
    run = lm_evaluate(lm=scorer, task_dict={"tasks": made, "groups": {}}, bootstrap_iters=0, log_samples=True)
    results = {}
    for name, (spec, items) in tasks.items():
        found = {key.split(",")[0]: value for key, value in run["results"][name].items()}
        extra = {"acc", "perplexity"} & found.keys() - {spec["metric"]}
        results[name] = {"value": found[spec["metric"]], **{key: found[key] for key in sorted(extra)}}
        if spec["output_type"] != "loglikelihood_rolling":
            lengths = [len(scorer.encode(item["context"])) for item in items]
            results[name]["context_tokens"] = [min(lengths), max(lengths)]
        samples = results[name]["samples"] = []
        for row in sorted(run["samples"][name], key=lambda row: row["doc_id"]):
            value, item = row[spec["metric"]], items[row["doc_id"]]["id"]
            if spec["output_type"] == "loglikelihood_rolling":
                samples.append({"id": item, "nats": -value[0], "bytes": value[1]})
            else:
                samples.append({"id": item, "value": int(value)})
    return results
