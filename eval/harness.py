"""Our model as an lm-eval model, and our tasks as lm-eval tasks. The only file that knows lm_eval."""

import logging
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

# Before `datasets` is imported, which reads them then: nothing here is on the hub, and asking costs 25 seconds a try.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval draws a bar for every step; there is one line here, `progress`

import lm_eval
import torch
from datasets import Dataset
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

VERSION: str = lm_eval.__version__
Pair = tuple[list[int], list[int]]  # token ids given, token ids scored


class Scorer(TemplateLM):
    """Log-likelihoods of text under a GPT, in nats.

    model: with `hidden` [B, T] -> [B, T, D], `project` [..., D] -> [..., V] and `max_length`; on any device.
    tokenizer: with `encode(text) -> ids` and `eod`, the id that begins a document.
    window: tokens given to the model at a time for held-out loss: the training length, the same for every arm.
    progress: called with the number of tokens done and the number in all, after every batch.
    """

    def __init__(self, model: Any, tokenizer: Any, window: int, batch: int = 4096,
                 progress: Callable[[int, int], None] = lambda done, total: None):
        super().__init__()
        self.model, self.tok, self.window, self.batch, self.progress = model.eval(), tokenizer, window, batch, progress
        self._device = next(model.parameters()).device
        self._encode = lru_cache(maxsize=None)(lambda text: tuple(tokenizer.encode(text)))
        self.truncated: dict[str, int] = {}  # contexts cut from the left, by the continuation's role

    @property
    def eot_token_id(self) -> int:
        return self.tok.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self._encode(string))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of whole texts: every token once, in disjoint windows, the first after `eod`."""
        windows = [[make_disjoint_window(pair) for pair in get_rolling_token_windows(
            self.tok_encode(request.args[0]), self.eot_token_id, max_seq_len=self.window, context_len=1)]
            for request in requests]
        scores = iter(self.score([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        raise NotImplementedError("this model only scores text; tasks of output type generate_until are not supported")

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for (_, continuation), _, ids in requests:
            if not ids:
                raise ValueError(f"the tokenizer leaves no token of its own to the continuation {continuation!r}")
        return self.score([(context, continuation) for _, context, continuation in requests])

    @torch.inference_mode()
    def score(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        """log p(scored | given), and whether every scored token is the likeliest one.

        Where the model has a longest input, what is given is cut from the left; elsewhere nothing is.
        """
        longest = self.model.max_length
        inputs = []
        for given, scored in pairs:
            if longest and len(scored) > longest:
                raise ValueError(f"{len(scored)} tokens to score, but the longest input of this model is {longest}")
            inputs.append(tuple((given + scored)[:-1][-longest:] if longest else (given + scored)[:-1]))

        # Attention is causal, so an input that begins another needs no pass of its own: the four one-word choices
        # of a question are one pass. In lexicographic order it comes right before those that it begins.
        serves: dict[tuple[int, ...], tuple[int, ...]] = {}
        following: tuple[int, ...] = ()
        for tokens in sorted(set(inputs), reverse=True):
            serves[tokens] = serves[following] if following[: len(tokens)] == tokens else tokens
            following = tokens
        wanted: dict[tuple[int, ...], list[int]] = {}
        for i, tokens in enumerate(inputs):
            wanted.setdefault(serves[tokens], []).append(i)

        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        done, total = 0, sum(map(len, wanted))
        for group in batches(sorted(wanted, key=lambda tokens: (-len(tokens), tokens)), self.batch):
            x_BT = torch.zeros(len(group), len(group[0]), dtype=torch.long)  # padded on the right, where nothing looks
            for row, tokens in enumerate(group):
                x_BT[row, : len(tokens)] = torch.tensor(tokens)
            x_BTD = self.model.hidden(x_BT.to(self._device))
            for row, tokens in enumerate(group):
                for i in wanted[tokens]:
                    scored, end = pairs[i][1], len(inputs[i])
                    logp_TV = self.model.project(x_BTD[row, end - len(scored) : end]).float().log_softmax(-1)
                    target_T = torch.tensor(scored, device=self._device)
                    logp_T = logp_TV.gather(1, target_T[:, None])[:, 0]
                    results[i] = (logp_T.sum().item(), bool((logp_TV.argmax(-1) == target_T).all()))
            done += sum(map(len, group))
            self.progress(done, total)
        return results


def batches(inputs: Iterable[tuple[int, ...]], tokens: int) -> Iterable[list[tuple[int, ...]]]:
    """Cuts inputs, longest first, into batches of at most so many tokens with their padding (but at least one)."""
    group: list[tuple[int, ...]] = []
    for each in inputs:
        if group and (len(group) + 1) * len(group[0]) > tokens:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def task(name: str, spec: dict, items: list[dict]) -> ConfigurableTask:
    """An lm-eval task of items in memory (see eval/probes.py), scored as tasks.yaml says."""
    metrics = [{"metric": spec["metric"], "aggregation": "mean", "higher_is_better": spec["higher_is_better"]}]
    if spec["output_type"] == "loglikelihood_rolling":
        metrics[0]["aggregation"] = spec["metric"]
    elif spec["output_type"] == "loglikelihood":
        metrics.append({"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False})
    config = {
        "task": name, "output_type": spec["output_type"], "metric_list": metrics, "num_fewshot": 0,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items)}, "test_split": "test",
        "doc_to_text": "context", "doc_to_target": "target", "target_delimiter": "",
    }
    if spec["output_type"] == "multiple_choice":
        config["doc_to_choice"] = "choices"
    return ConfigurableTask(config=config)


def evaluate(scorer: Scorer, tasks: dict[str, tuple[dict, list[dict]]]) -> dict[str, dict]:
    """Runs tasks {name: (its entry in tasks.yaml, items)} through lm-eval.

    Returns {name: {"value": the metric, "perplexity": of last words only,
                    "samples": [{"id", "value"} or {"id", "nats", "bytes"}]}}, samples in the order of the items.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    run = lm_evaluate(lm=scorer, task_dict={"tasks": {n: task(n, *t) for n, t in tasks.items()}, "groups": {}},
                      bootstrap_iters=0, log_samples=True)
    results = {}
    for name, (spec, items) in tasks.items():
        metric = spec["metric"]
        samples = []
        for row in sorted(run["samples"][name], key=lambda row: row["doc_id"]):
            value = row[metric]
            outcome = {"nats": -value[0], "bytes": value[1]} if isinstance(value, tuple) else {"value": int(value)}
            samples.append({"id": items[row["doc_id"]]["id"], **outcome})
        found = run["results"][name]
        results[name] = {"value": found[f"{metric},none"], "samples": samples}
        if "perplexity,none" in found:
            results[name]["perplexity"] = found["perplexity,none"]
    return results
