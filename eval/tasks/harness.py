"""Our model as an lm-eval model; our tasks, and lm-eval's own, as lm-eval tasks. The only file that knows lm_eval."""

import difflib
import functools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

# Set before `datasets` is imported, which reads them then: evaluation reads no hub, and asking it takes 25 s.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has a bar for every step; `progress` is enough

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml  # the one loader that resolves `include:` and `!function`
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.tasks import score
from eval.tasks.mirror import Mirror, Source, suite
from eval.tasks.probes import digest

TASKS = Path(lm_eval.tasks.__file__).parent
NEW = 256  # tokens of a continuation where the task names no number; lm-eval's own


class Scorer(TemplateLM):
    """Log-likelihoods of text under a GPT, in nats, and greedy continuations.

    model: a GPT (model/gpt.py) on any device.
    tokenizer: with `encode(text) -> ids`, `decode(ids) -> text` and `eod`, the id that begins a document.
    window: tokens that the model is given at a time for held-out loss: the training length, in every arm.
    batch: tokens of a forward pass, padding included; None: what suits the device.
    progress: called after every forward pass with the tokens done and the tokens in all.
    journal: keeps outcomes as they come (eval/tasks/score.py).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        window: int,
        batch: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        journal: score.Journal | None = None,
    ):
        super().__init__()
        self.model, self.window, self.eod = model.eval(), window, tokenizer.eod
        self.how: dict[str, Any] = {"batch": batch, "progress": progress, "journal": journal or score.Journal()}
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer.encode(text)))
        self.decode: Callable[[list[int]], str] = getattr(tokenizer, "decode", str)

    @property
    def eot_token_id(self) -> int:
        return self.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.encode(string))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of whole texts: every token once, in disjoint windows, the first of them after `eod`."""
        windows = [
            [
                make_disjoint_window(pair)
                for pair in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.eod, max_seq_len=self.window, context_len=1
                )
            ]
            for request in requests
        ]
        scores = iter(self.score([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to the first of the task's stop strings or the end of document.

        Raises:
            ValueError: when a task asks for sampling.
        """
        asked: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            asked.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        made = [""] * len(requests)
        for settings, which in asked.items():
            wanted = json.loads(settings)
            if wanted.get("do_sample") or wanted.get("num_beams", 1) != 1:
                raise ValueError(f"only greedy continuations can be made, not {settings}")
            stops = wanted.get("until") or []
            stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
            new = int(wanted.get("max_gen_toks", NEW))
            if self.model.max_length:  # half of the longest input at least is left to the context
                new = min(new, self.model.max_length // 2)
            ended = functools.partial(self._ended, stops=stops)
            contexts = [self.tok_encode(requests[i].args[0]) or [self.eod] for i in which]
            found = score.continuations(self.model, contexts, new, ended, **self.how)
            for i, ids in zip(which, found, strict=True):
                made[i] = self._text(ids)
                for stop in stops:
                    made[i] = made[i].split(stop)[0]
        return made

    def _text(self, ids: list[int]) -> str:
        return self.decode(ids[: ids.index(self.eod)] if self.eod in ids else ids)

    def _ended(self, ids: list[int], stops: list[str]) -> bool:
        return ids[-1] == self.eod or any(stop in self._text(ids) for stop in stops)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for (_, continuation), _, ids in requests:
            if not ids:
                raise ValueError(f"the tokenizer leaves no token to the continuation {continuation!r}")
        return self.score([(context or [self.eod], continuation) for _, context, continuation in requests])

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """See `score.likelihoods`."""
        return score.likelihoods(self.model, pairs, **self.how)


# ------------------------------------------------------------------------------------------------ our tasks


def task(name: str, spec: dict, items: list[dict]) -> ConfigurableTask:
    """An lm-eval task of items in memory (see eval/tasks/probes.py), scored as its entry in tasks.yaml says."""
    kind = spec["output_type"]
    metrics = {spec["metric"]: "bits_per_byte" if kind == "loglikelihood_rolling" else "mean"}
    if kind == "loglikelihood":
        metrics["perplexity"] = "perplexity"
    if kind == "multiple_choice":
        metrics["acc"] = "mean"
    return ConfigurableTask(
        config={
            "task": name,
            "output_type": kind,
            "metric_list": [
                {
                    "metric": metric,
                    "aggregation": aggregation,
                    "higher_is_better": metric not in ("perplexity", "bits_per_byte"),
                }
                for metric, aggregation in metrics.items()
            ],
            "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": "context",
            "doc_to_target": "target",
            "target_delimiter": "",
            **({"doc_to_choice": "choices"} if kind == "multiple_choice" else {}),
        }
    )


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


# ------------------------------------------------------------------------------------------------ lm-eval's tasks


class Definition(NamedTuple):
    """A task of lm-eval: its resolved YAML, and the split of which data set it is evaluated on."""

    config: dict
    source: Source


def definitions(names: list[str]) -> dict[str, Definition]:
    """Tasks, groups and tags of lm-eval, by name; {task: Definition}.

    Those of the suite are found at once; for others lm-eval's 14,000 files are searched (7 s).

    Raises:
        ValueError: for a name that lm-eval does not know, or a task that cannot be run here.
    """
    known = suite()
    files = {name: TASKS / known[name]["file"] for name in names if name in known}
    if others := [name for name in names if name not in known]:
        index = _index()
        for name in others:
            files |= {task: Path(index[task].yaml_path) for task in _members(name, index)}
    found = {}
    for name, path in files.items():
        config = load_yaml(path)
        spec = known.get(name)
        if "class" in config or config.get("output_type") not in (
            "multiple_choice",
            "loglikelihood",
            "loglikelihood_rolling",
            "generate_until",
        ):
            raise ValueError(f"{name} is a task with code of its own in lm-eval, and cannot be run here")
        split = config.get("test_split") or config["validation_split"]
        source = Source(spec["path"], spec["config"], spec["split"]) if spec else _source(name, config, split)
        if spec and (config["metadata"]["version"] != spec["version"] or split != spec["split"]):
            raise ValueError(
                f"{name} has version {config['metadata']['version']} and split {split} in the installed "
                f"lm-eval, {spec['version']} and {spec['split']} in eval/tasks/tasks.yaml"
            )
        found[name] = Definition(config, source)
    return found


@functools.cache
def _index() -> dict:
    return TaskManager().task_index


def _members(name: str, index: dict) -> list[str]:
    """The tasks of a group or tag; a task itself."""
    if name not in index:
        close = difflib.get_close_matches(name, list(index), n=1)
        raise ValueError(
            f"there is no task {name!r} in lm-eval{f' (did you mean {close[0]}?)' if close else ''}; "
            "suite and multilingual name those of eval/tasks/tasks.yaml"
        )
    entry = index[name]
    if entry.yaml_path is None:  # a tag
        return sorted(entry.tags)
    if "group" not in entry.cfg:
        return [name]
    members = entry.cfg["task"]
    found = []
    for each in [members] if isinstance(members, str) else members:
        if not isinstance(each, str) and each.keys() - {"task", "group"}:
            raise ValueError(f"{name} is a group that changes its tasks, and cannot be run here; name the tasks")
        found += _members(each if isinstance(each, str) else each.get("task") or each["group"], index)
    return found


def _source(name: str, config: dict, split: str) -> Source:
    path = config["dataset_path"]
    if "/" not in path:  # a builder such as json, with addresses of files
        address = json.dumps(config.get("dataset_kwargs"))
        hub = re.search(r"hf://datasets/([^/@]+/[^/@]+)", address)
        if not hub:
            raise ValueError(f"{name} reads {address}, which is not on the hub, and cannot be mirrored")
        path = hub[1]
    return Source(path, config.get("dataset_name") or "default", split)


def build(tasks: dict[str, Definition], mirror: Mirror) -> dict[str, ConfigurableTask]:
    """lm-eval's own tasks, zero-shot, on the data of `mirror` and nothing else."""
    made = {}
    for name, (config, source) in tasks.items():
        table = mirror.table(source)
        rest = {k: v for k, v in config.items() if k not in ("tag", "group", "task_list", "fewshot_config")}
        made[name] = ConfigurableTask(
            config={
                **rest,
                "training_split": None,
                "fewshot_split": None,
                "num_fewshot": 0,
                "dataset_kwargs": None,
                "validation_split": None if config.get("test_split") else source.split,
                "custom_dataset": lambda table=table, split=source.split, **_: {split: table},
            }
        )
    return made


def evaluate_named(scorer: Scorer, tasks: dict[str, Definition], mirror: Mirror) -> dict[str, dict]:
    """Runs the tasks of `build`.

    Returns: {name: {"metric", "value", "version", "n", "chance": mean of one over the options (0 for an answer written
        out, None where neither applies), "guess": the better of chance and always the commonest answer, "data": where
        the items are from, other metrics by name, "context_tokens": [least, most], "samples": [{"id", "value"}]}}.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    made = build(tasks, mirror)
    run = lm_evaluate(lm=scorer, task_dict={"tasks": made, "groups": {}}, bootstrap_iters=0, log_samples=True)
    return {
        name: _outcome(scorer, made[name], run, name) | {"data": _origin(mirror, tasks[name].source)} for name in tasks
    }


def _origin(mirror: Mirror, source: Source) -> dict:
    entry = mirror.entries[source]
    return {**source._asdict(), **{key: entry.get(key) for key in ("rows", "sha256", "revision")}}


def _outcome(scorer: Scorer, made: ConfigurableTask, run: Any, name: str) -> dict:
    found = {
        key.split(",")[0]: value
        for key, value in run["results"][name].items()
        if isinstance(value, float | int) and "_stderr" not in key
    }
    listed = [each["metric"] for each in made.config.metric_list if isinstance(each["metric"], str)]
    metric = next((each for each in ("acc", "exact_match") if each in listed), listed[0])
    rows, one = {}, None  # where a task has several filters, the first
    for row in run["samples"][name]:
        one = one or row["filter"]
        if row["filter"] == one:
            rows[row["doc_id"]] = row
    ordered = [rows[i] for i in sorted(rows)]
    questions = [json.dumps([row["arguments"], row["target"]], default=str) for row in ordered]
    seen: Counter[str] = Counter()
    samples = []
    for row, question in zip(ordered, questions, strict=True):
        seen[question] += 1
        again = f"-{seen[question]}" if seen[question] > 1 else ""  # the same question twice is two items
        if isinstance(row[metric], float | int):
            samples.append({"id": digest(question) + again, "value": float(row[metric])})
    outcome = {"metric": metric, "value": found[metric], **{k: found[k] for k in listed if k in found and k != metric}}
    contexts = [len(scorer.encode(argument[0])) for row in ordered for argument in row["arguments"][:1]]
    return {
        **outcome,
        **guess(made.config.output_type, metric, ordered),
        "version": made.VERSION,
        "n": len(ordered),
        "higher_is_better": made.higher_is_better()[metric],
        "context_tokens": [min(contexts), max(contexts)],
        "samples": samples,
    }


def guess(kind: str, metric: str, rows: list[dict]) -> dict[str, float | None]:
    """{"chance", "guess"} of a task, from lm-eval's logged samples.

    guess: the better of chance and of always choosing the place that is right most often. Where the answers have names,
    as yes and no, that is the commonest answer, also where each item writes them out differently, as in MultiRC; where
    each item has answers of its own it is a little above chance.
    """
    if metric == "exact_match" or kind == "loglikelihood":
        return {"chance": 0.0, "guess": 0.0}
    if kind != "multiple_choice" or metric != "acc" or not all(isinstance(row["target"], int | str) for row in rows):
        return {"chance": None, "guess": None}
    chance = sum(1 / len(row["arguments"]) for row in rows) / len(rows)
    commonest = Counter(str(row["target"]) for row in rows).most_common(1)[0][1] / len(rows)
    return {"chance": chance, "guess": max(chance, commonest)}
