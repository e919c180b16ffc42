"""Our model as an lm-eval model; our tasks, and lm-eval's own, as lm-eval tasks. The only file that knows lm_eval."""

import difflib
import fnmatch
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
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

from eval.statistics.items import LN2
from eval.tasks import score
from eval.tasks.mirror import Mirror, Source, suite
from eval.tasks.probes import digest

TASKS = Path(lm_eval.tasks.__file__).parent
KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")  # of requests: output_type
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
NEW = 256  # tokens of a continuation where the task names no number; lm-eval's own
EXAMPLES_SEED = 1234  # which examples a prompt has; lm-eval's own
FIRST_REQUESTS = 3  # items whose requests are made to see whether a task can be run
# Columns of data sets whose text several items may share: MultiRC, BoolQ, RACE, SQuAD and its like, XNLI.
PASSAGES = ("paragraph", "passage", "article", "context", "story", "premise")


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
        self._unknown = getattr(tokenizer, "unknown", None)

    @property
    def eot_token_id(self) -> int:
        return self.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.encode(string))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of whole texts: every token once, in disjoint windows, the first of them after `eod`.

        Each byte of a text that the tokenizer does not know is charged 8 bits, what it costs to write it out: else a
        tokenizer without pieces for the script of a text would have next to nothing to predict.
        """
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
        nats = [sum(next(scores)[0] for _ in pairs) for pairs in windows]
        charges = [8 * LN2 * self.unknown_bytes(request.args[0]) for request in requests]
        return [score_ - charge for score_, charge in zip(nats, charges, strict=True)]

    def unknown_bytes(self, text: str) -> int:
        """Bytes of a text that the tokenizer maps to its token for the unknown; 0 of a lossless tokenizer."""
        return self._unknown(text)[1] if self._unknown else 0

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
            if not greedy(wanted):
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
        [least, most], "prompts_sha256", "items_sha256", "samples": [{"id", "cluster", "value": 0 or 1} or {"id",
        "cluster", "nats", "bytes", "unknown_bytes" where there are any}, ...] in the order of the items}}.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    made = {name: task(name, spec, items) for name, (spec, items) in tasks.items()}
    run = lm_evaluate(lm=scorer, task_dict={"tasks": made, "groups": {}}, bootstrap_iters=0, log_samples=True)
    results = {}
    for name, (spec, items) in tasks.items():
        values = {key.split(",")[0]: value for key, value in run["results"][name].items()}
        others = {"acc", "perplexity"} & values.keys() - {spec["metric"]}
        result: dict[str, Any] = {"value": values[spec["metric"]], **{key: values[key] for key in sorted(others)}}
        rolling = spec["output_type"] == "loglikelihood_rolling"
        if not rolling:
            lengths = [len(scorer.encode(item["context"])) for item in items]
            result["context_tokens"] = [min(lengths), max(lengths)]
        ordered = sorted(run["samples"][name], key=lambda row: row["doc_id"])
        samples = []
        for row in ordered:
            value, item = row[spec["metric"]], items[row["doc_id"]]
            sample = {"id": item["id"]} | ({"cluster": item["cluster"]} if "cluster" in item else {})
            if rolling:
                sample |= {"nats": -value[0], "bytes": value[1]}
                if unknown := scorer.unknown_bytes(item["target"]):
                    sample["unknown_bytes"] = unknown
            else:
                sample["value"] = int(value)
            samples.append(sample)
        result["prompts_sha256"] = sha256([row["arguments"] for row in ordered])
        result["items_sha256"] = sha256([item["id"] for item in items])
        results[name] = result | {"samples": samples}
    return results


# ------------------------------------------------------------------------------------------------ lm-eval's tasks


class Definition(NamedTuple):
    """A task of lm-eval: its resolved YAML, with `num_fewshot` as it is to be run, and the split it is evaluated on."""

    config: dict
    source: Source

    @property
    def shots(self) -> int:
        """Examples in each prompt."""
        return self.config["num_fewshot"]

    @property
    def examples(self) -> Source | None:
        """Where these are from; None: from the definition itself, or there are none."""
        split = _examples_split(self.config) if self.shots else None
        return self.source._replace(split=split) if split else None

    @property
    def sources(self) -> list[Source]:
        return [self.source] + ([self.examples] if self.examples and self.examples != self.source else [])


def definitions(names: list[str], shots: int | None = None) -> dict[str, Definition]:
    """Tasks, groups and tags of lm-eval, by name or by a pattern such as mmlu_*; {task: Definition}.

    Those of the suite are read at once; for others lm-eval's 14,000 files are searched (7 s).

    Args:
        shots: examples in each prompt; None: as many as the definition says, which for most tasks is none.

    Raises:
        ValueError: for a name that lm-eval does not know, or a task that cannot be run here.
    """
    known = suite()
    made: dict[str, Definition] = {}
    for name in names:
        if name in known:
            made[name] = _definition(name, TASKS / known[name]["file"], known[name], shots)
            continue
        index = _index()
        left_out: list[str] = []
        members = _members(name, index)
        for task in members:
            try:
                if index[task].yaml_path is None:
                    raise ValueError(f"{task} is a task with code of its own in lm-eval, and cannot be run here")
                made[task] = _definition(task, Path(index[task].yaml_path), None, shots)
            except ValueError as error:
                if not is_pattern(name) or len(left_out) + 1 == len(members):
                    raise
                left_out.append(str(error))
        for why in left_out:
            print(f"left out of {name}: {why}", file=sys.stderr)
    return made


def is_pattern(name: str) -> bool:
    """Whether a name may stand for several, as mmlu_* does."""
    return any(sign in name for sign in "*?[")


def _definition(name: str, path: Path, spec: dict | None, shots: int | None) -> Definition:
    """One task. spec: its entry in tasks.yaml, where it has one."""
    try:
        config = load_yaml(path)
    except Exception as error:  # of the task's own code: it may import what is not installed, or include itself
        raise ValueError(f"{name} cannot be loaded: {_sentence(error)}") from error
    if "class" in config or config.get("output_type") not in KINDS:
        raise ValueError(f"{name} is a task with code of its own in lm-eval, and cannot be run here")
    split = config.get("test_split") or config.get("validation_split")
    if not split:
        raise ValueError(f"{name} names neither a test nor a validation split, and cannot be evaluated")
    if spec:
        version = config["metadata"]["version"]
        if version != spec["version"] or split != spec["split"]:
            raise ValueError(
                f"{name} has version {version} and split {split} in the installed lm-eval, {spec['version']} and "
                f"{spec['split']} in eval/tasks/tasks.yaml"
            )
        source = Source(spec["path"], spec["config"], spec["split"])
    else:
        source = _source(name, config, split)
    number = int(config.get("num_fewshot") or 0) if shots is None else shots
    if config["output_type"] == "loglikelihood_rolling":
        number = 0  # whole texts have no examples before them
    return Definition({**config, "num_fewshot": number}, source)


def _examples_split(config: dict) -> str | None:
    """The split that lm-eval takes the examples of a prompt from; None where the definition writes them out."""
    own = config.get("fewshot_config") or {}
    if split := own.get("split") or config.get("fewshot_split"):
        return split
    if own.get("samples") is not None:
        return None
    return next(config[key] for key in ("training_split", "validation_split", "test_split") if config.get(key))


@functools.cache
def _index() -> dict:
    return TaskManager().task_index


def _members(name: str, index: dict, above: tuple[str, ...] = ()) -> list[str]:
    """The tasks of a group or tag, or of all names that a pattern matches; a task itself.

    above: the groups that are being resolved, of which none may contain itself.
    """
    if name not in index and is_pattern(name):
        tasks = [task for task in fnmatch.filter(sorted(index), name) if "group" not in (index[task].cfg or {})]
        if tasks := [task for task in tasks if index[task].yaml_path]:
            return tasks
        raise ValueError(f"no task of lm-eval has a name like {name!r}")
    if name not in index:
        close = difflib.get_close_matches(name, list(index), n=1)
        raise ValueError(
            f"there is no task {name!r} in lm-eval{f' (did you mean {close[0]}?)' if close else ''}; "
            "suite and multilingual name those of eval/tasks/tasks.yaml"
        )
    entry = index[name]
    if entry.yaml_path is None:  # a tag, or a task in Python alone
        tags = sorted(entry.tags or ())
        return [task for tag in tags for task in ([tag] if tag == name else _members(tag, index, (*above, name)))]
    if "group" not in (entry.cfg or {}):
        return [name]
    members = entry.cfg.get("task") or []
    if members == name:
        return [name]  # a task that says which group it is of
    tasks = []
    for member in [members] if isinstance(members, str) else members:
        if not isinstance(member, str) and member.keys() - {"task", "group"}:
            raise ValueError(f"{name} is a group that changes its tasks, and cannot be run here; name the tasks")
        inner = member if isinstance(member, str) else member.get("task") or member["group"]
        if not isinstance(inner, str) or inner in (*above, name):
            raise ValueError(
                f"{name} is a group that defines or contains itself, and cannot be run here; name its tasks"
            )
        tasks += _members(inner, index, (*above, name))
    return tasks


def _source(name: str, config: dict, split: str) -> Source:
    path = config.get("dataset_path")
    if not isinstance(path, str):
        raise ValueError(f"{name} names no data set of the hub, and cannot be mirrored")
    if "/" not in path:  # a builder such as json, with addresses of files
        address = json.dumps(config.get("dataset_kwargs"), default=str)
        hub = re.search(r"hf://datasets/([^/@]+/[^/@]+)", address)
        if not hub:
            raise ValueError(f"{name} reads {address}, which is not on the hub, and cannot be mirrored")
        path = hub[1]
    return Source(path, str(config.get("dataset_name") or "default"), split)


def greedy(settings: dict) -> bool:
    """Whether generation settings ask for the likeliest token each time: all that is made here."""
    return not settings.get("do_sample") and settings.get("num_beams", 1) == 1


def _sentence(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def build(tasks: dict[str, Definition], mirror: Mirror) -> dict[str, ConfigurableTask]:
    """lm-eval's own tasks, on the data of `mirror` and nothing else."""
    return {name: _build(definition, mirror) for name, definition in tasks.items()}


def _build(definition: Definition, mirror: Mirror) -> ConfigurableTask:
    config, source = definition
    shots, examples = definition.shots, definition.examples
    tables = {split.split: mirror.table(split) for split in definition.sources}
    config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    if not shots:
        config.pop("fewshot_config", None)
    here = {key: config[key] if config.get(key) in tables else None for key in SPLITS}
    if not shots:
        here |= {"training_split": None, "fewshot_split": None}
    if config.get("test_split") and not (shots and examples and examples.split == config.get("validation_split")):
        here["validation_split"] = None
    built = ConfigurableTask(
        config={**config, **here, "num_fewshot": shots, "dataset_kwargs": None, "custom_dataset": lambda **_: tables}
    )
    built.set_fewshot_seed(EXAMPLES_SEED)
    return built


def cannot_ask(name: str, definition: Definition, mirror: Mirror) -> str:
    """Why a task fails on the data that is here before any model is asked; "" when it does not.

    Builds the task and its first requests, so that what would fail in the evaluation of a trained run fails now.
    """
    settings = definition.config.get("generation_kwargs") or {}
    if not isinstance(settings, dict) or not greedy(settings):
        return "it asks for sampled answers, or several beams, and only greedy ones are made here"
    try:
        built = _build(definition, mirror)
        built.build_all_requests(limit=FIRST_REQUESTS, rank=0, world_size=1)
        return "" if built.instances else "it has no items"
    except Exception as error:  # of the task's own code, which may be anything
        return _sentence(error)


def evaluate_named(
    scorer: Scorer, tasks: dict[str, Definition], mirror: Mirror
) -> tuple[dict[str, dict], dict[str, str]]:
    """Runs lm-eval's tasks. One that fails costs no other its result.

    Returns: {name: {"metric", "value", "version", "shots", "n", "chance": mean of one over the options (0 for an answer
        written out, None where neither applies), "guess": the better of chance and always the commonest answer, "data"
        and "examples": where the items and the examples are from, other metrics by name, "context_tokens": [least,
        most], "prompts_sha256", "items_sha256", "samples": [{"id", "value", "cluster"}]}}; {name: why it failed}.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    failed: dict[str, str] = {}
    made: dict[str, ConfigurableTask] = {}
    for name, definition in tasks.items():
        try:
            made[name] = _build(definition, mirror)
        except OSError:
            raise
        except Exception as error:
            failed[name] = _sentence(error)
    results: dict[str, dict] = {}
    try:
        results = _run(scorer, made)
    except OSError:
        raise  # of the disk: the journal cannot be written
    except Exception:  # one of them: each alone; what was scored already is in the journal
        for name in made:
            try:
                made[name] = _build(tasks[name], mirror)
                results |= _run(scorer, {name: made[name]})
            except OSError:
                raise
            except Exception as error:
                failed[name] = _sentence(error)
    for name, result in results.items():
        result["shots"] = tasks[name].shots
        result["data"] = _origin(mirror, tasks[name].source)
        if examples := tasks[name].examples:
            result["examples"] = _origin(mirror, examples)
    return results, failed


def _run(scorer: Scorer, made: dict[str, ConfigurableTask]) -> dict[str, dict]:
    """{name: outcome} of tasks that are asked together, so that what they have in common is computed once."""
    if not made:
        return {}
    run = lm_evaluate(lm=scorer, task_dict={"tasks": made, "groups": {}}, bootstrap_iters=0, log_samples=True)
    return {name: _outcome(scorer, made[name], run, name) for name in made}


def _origin(mirror: Mirror, source: Source) -> dict:
    entry = mirror.entries[source]
    return {**source._asdict(), **{key: entry.get(key) for key in ("rows", "sha256", "revision")}}


def _outcome(scorer: Scorer, made: ConfigurableTask, run: Any, name: str) -> dict:
    values = {
        key.split(",")[0]: value
        for key, value in run["results"][name].items()
        if isinstance(value, float | int) and "_stderr" not in key
    }
    listed = [entry["metric"] for entry in made.config.metric_list or [] if isinstance(entry["metric"], str)]
    listed = listed or list(values)
    metric = next((each for each in ("acc", "exact_match") if each in listed), listed[0])
    if not math.isfinite(values[metric]):
        raise ValueError(f"its {metric} is {values[metric]}, which is no number")
    rows, first_filter = {}, None  # where a task has several filters, the first
    for row in run["samples"][name]:
        first_filter = first_filter or row["filter"]
        if row["filter"] == first_filter:
            rows[row["doc_id"]] = row
    ordered = [rows[i] for i in sorted(rows)]
    questions = [json.dumps([row["arguments"], row["target"]], default=str) for row in ordered]
    seen: Counter[str] = Counter()
    samples = []
    for row, question in zip(ordered, questions, strict=True):
        seen[question] += 1
        again = f"-{seen[question]}" if seen[question] > 1 else ""  # the same question twice is two items
        if isinstance(row[metric], float | int):
            sample = {"id": digest(question) + again, "value": float(row[metric])}
            samples.append(sample | cluster(row["doc"]))
    contexts = [len(scorer.encode(argument[0])) for row in ordered for argument in row["arguments"][:1]]
    return {
        "metric": metric,
        "value": values[metric],
        **{key: values[key] for key in listed if key in values and key != metric and math.isfinite(values[key])},
        **guess(made.config.output_type, metric, ordered),
        "version": made.VERSION,
        "n": len(ordered),
        "higher_is_better": made.higher_is_better()[metric],
        "context_tokens": [min(contexts), max(contexts)],
        "prompts_sha256": sha256([row["arguments"] for row in ordered]),
        "items_sha256": sha256([[row["doc"], row["target"]] for row in ordered]),
        "samples": samples,
    }


def sha256(value: Any) -> str:
    """Hash of what JSON can say, and of how other things are written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def cluster(doc: Any) -> dict[str, str]:
    """{"cluster": name} of an item that may share its passage, article or premise with others; {} of one that has none.

    doc: a row of the data set.
    """
    if not isinstance(doc, dict):
        return {}
    for column in PASSAGES:
        if isinstance(doc.get(column), str) and doc[column].strip():
            return {"cluster": digest(" ".join(doc[column].split()))}
    return {}


def guess(kind: str, metric: str, rows: list[dict]) -> dict[str, float | None]:
    """{"chance", "guess"} of a task, from lm-eval's logged samples.

    chance: the mean of one over the options of each item, as they are in the data; 0 for an answer written out.
    guess: the better of chance and of always giving the commonest answer: the place that is right most often, which
    for yes and no is the commonest answer also where each item writes them out differently, as in MultiRC, and which is
    a little above chance where each item has answers of its own; of answers written out, the commonest text.
    """
    written = metric == "exact_match" or kind == "loglikelihood"
    if not (written or (kind == "multiple_choice" and metric == "acc")):
        return {"chance": None, "guess": None}
    accepted = [set(map(str, row["target"] if isinstance(row["target"], list) else [row["target"]])) for row in rows]
    counts = Counter(answer for answers in accepted for answer in answers)
    commonest = max(counts.values(), default=0) / len(rows)
    if written:
        return {"chance": 0.0, "guess": commonest}
    # acc_mutual_info asks for each option a second time, without a context
    options = [sum(argument[0] != "" for argument in row["arguments"]) or len(row["arguments"]) for row in rows]
    chance = sum(len(right) / number for number, right in zip(options, accepted, strict=True)) / len(rows)
    return {"chance": chance, "guess": max(chance, commonest)}
