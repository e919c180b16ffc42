"""Definitions of lm-eval's tasks: which tasks a name stands for, how each is defined, and which data sets it reads."""

import contextlib
import fnmatch
import functools
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
import yaml
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import (
    _make_loader,
    load_yaml,  # the one loader that resolves `include:` and `!function`
)

from ablations.values import did_you_mean
from eval.tasks.mirror import Source, groups, suite

TASKS = Path(lm_eval.tasks.__file__).resolve().parent
KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")  # values of output_type
# What the code of a task may raise: anything, and SLR-Bench's ends the process where Prolog is not installed.
FAILURES = (Exception, SystemExit)


class Definition(NamedTuple):
    """The definition of a task of lm-eval. `config`: its YAML, with included files merged and `num_fewshot` as
    requested; `source`: the split on which the task is evaluated."""

    config: dict
    source: Source

    @property
    def shots(self) -> int:
        """The number of examples in each prompt."""
        return self.config["num_fewshot"]

    @property
    def examples(self) -> Source | None:
        """The split from which the examples in the prompts are taken; None where there are no examples, or they stand
        in the definition itself."""
        split = _fewshot_split(self.config) if self.shots else None
        return self.source._replace(split=split) if split else None

    @property
    def sources(self) -> list[Source]:
        """The distinct splits that the task reads: that of the items, and that of the examples where there is one."""
        return [self.source] + ([self.examples] if self.examples and self.examples != self.source else [])


def definitions(names: list[str], shots: int | None = None) -> dict[str, Definition]:
    """The definitions of tasks of lm-eval, {task: definition}. Tasks that match a pattern but cannot be run here are
    left out, and named on the terminal.

    Tasks of the suite (eval/tasks/tasks.yaml) are read directly. For other tasks lm-eval's index of its 14,000 files is
    built first, which takes 3 s.

    Args:
        names: names of tasks, groups or tags, or patterns such as mmlu_*.
        shots: the number of examples in each prompt; None: as the task's definition says, which for most tasks is none.

    Raises:
        ValueError: lm-eval does not know a name, or a task that is not named by a pattern cannot be run here.
    """
    suite_tasks = suite()
    tasks: dict[str, Definition] = {}
    for name in names:
        if name in suite_tasks:
            tasks[name] = _definition(name, TASKS / suite_tasks[name]["file"], suite_tasks[name], shots)
            continue
        index = _index()
        left_out: list[str] = []
        members = _tasks_of_name(name, index)
        for task in members:
            try:
                if index[task].yaml_path is None:
                    raise ValueError(f"{task} is a task with code of its own in lm-eval, and cannot be run here")
                tasks[task] = _definition(task, Path(index[task].yaml_path), None, shots)
            except ValueError as error:
                if not is_pattern(name) or len(left_out) + 1 == len(members):
                    raise
                left_out.append(str(error))
        for why in left_out:
            print(f"left out of {name}: {why}", file=sys.stderr)
    return tasks


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern that may stand for several tasks, such as mmlu_*."""
    return any(sign in name for sign in "*?[")


def _definition(name: str, path: Path, spec: dict | None, shots: int | None) -> Definition:
    """The definition of one task of lm-eval.

    Args:
        name: the name of the task.
        path: lm-eval's file with its definition.
        spec: the task's entry in eval/tasks/tasks.yaml; None where it has none.
        shots: the number of examples in each prompt; None: as the task's definition says.

    Raises:
        ValueError: the task cannot be run here, or is not of the version that tasks.yaml names.
    """
    try:
        # This imports the code that `!function` names. `path` is a file of the installed lm-eval, never a stranger's:
        # commands and run directories name tasks, which are looked up among the files below TASKS alone.
        config = load_yaml(path)
    except FAILURES as error:  # it may import what is not installed, or include itself
        raise ValueError(f"{name} cannot be loaded: {error_in_one_line(error)}") from error
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


def _fewshot_split(config: dict) -> str | None:
    """The name of the split from which lm-eval takes the examples of a prompt; None where the definition contains the
    examples itself. `config`: the resolved YAML of the task."""
    fewshot = config.get("fewshot_config") or {}
    if split := fewshot.get("split") or config.get("fewshot_split"):
        return split
    if fewshot.get("samples") is not None:
        return None
    return next(config[key] for key in ("training_split", "validation_split", "test_split") if config.get(key))


@functools.cache
def _index() -> dict:
    """lm-eval's index of tasks: {name of a task, group or tag: lm-eval's entry, which says where it is defined}. It
    equals the index of lm-eval's TaskManager, but takes a third of the time, since no file is read twice."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of names that its own files define twice
    index: dict[str, Any] = {}
    for path in TaskIndex._iter_yaml_files(TASKS):
        with contextlib.suppress(*FAILURES):  # as lm-eval does, for some of its files cannot be read
            TaskIndex.process_cfg(_unresolved_config(path), path, index)
    return index


@functools.cache
def _loader(folder: Path) -> type[yaml.Loader]:
    """lm-eval's YAML loader for the files in a folder. The tag `!function`, a reference to a Python function, is read
    as text, so that nothing is imported. The base is PyYAML's CSafeLoader, or FullLoader where libyaml is missing."""
    return _make_loader(folder, resolve_funcs=False)


@functools.cache
def _unresolved_config(path: Path) -> dict:
    """The content of a YAML file of lm-eval, merged with the files that it includes. Where a key is in both, the value
    of the including file counts. References to Python functions are left as text."""
    with path.open("rb") as file:
        config = yaml.load(file, Loader=_loader(path.parent))  # noqa: S506  # files of the installed lm-eval alone
    includes = config.pop("include", [])
    merged: dict = {}
    for name in includes if isinstance(includes, list) else [includes]:
        included = dict(_unresolved_config((path.parent / name).resolve()))
        included.pop("task_list", None)
        merged |= included
    return merged | config


def _tasks_of_name(name: str, index: dict, outer: tuple[str, ...] = ()) -> list[str]:
    """The tasks that a name stands for: the members of a group or tag, the tasks that match a pattern, or the task
    itself.

    Args:
        name: the name of a task, group or tag, or a pattern.
        index: lm-eval's index of tasks, from `_index`.
        outer: in recursive calls the groups that contain this one, to detect groups that contain themselves.

    Raises:
        ValueError: lm-eval has no such task, or a group is defined in a way that cannot be run here.
    """
    if name not in index and is_pattern(name):
        tasks = [task for task in fnmatch.filter(sorted(index), name) if "group" not in (index[task].cfg or {})]
        if tasks := [task for task in tasks if index[task].yaml_path]:
            return tasks
        raise ValueError(f"no task of lm-eval has a name like {name!r}")
    if name not in index:
        raise ValueError(
            f"there is no task {name!r} in lm-eval{did_you_mean(name[:100], [*index, *groups()])}; "
            "suite and multilingual name those of eval/tasks/tasks.yaml"
        )
    entry = index[name]
    if entry.yaml_path is None:  # a tag, or a task in Python alone
        tags = sorted(entry.tags or ())
        return [task for tag in tags for task in ([tag] if tag == name else _tasks_of_name(tag, index, (*outer, name)))]
    if "group" not in (entry.cfg or {}):
        return [name]
    members = entry.cfg.get("task") or []
    if members == name:
        return [name]  # a task that says which group it is of
    tasks = []
    for member in [members] if isinstance(members, str) else members:
        if not isinstance(member, str) and member.keys() - {"task", "group"}:
            raise ValueError(f"{name} is a group that changes its tasks, and cannot be run here; name the tasks")
        member_name = member if isinstance(member, str) else member.get("task") or member["group"]
        if not isinstance(member_name, str) or member_name in (*outer, name):
            raise ValueError(
                f"{name} is a group that defines or contains itself, and cannot be run here; name its tasks"
            )
        tasks += _tasks_of_name(member_name, index, (*outer, name))
    return tasks


def _source(name: str, config: dict, split: str) -> Source:
    """The split on the hub from which a task reads its items. `name`: the task, for the error message; `config`: its
    YAML; `split`: the name of the split. Raises ValueError where the data is not on the hub."""
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


def is_greedy(settings: dict) -> bool:
    """Whether the generation settings of a task (lm-eval's `generation_kwargs`) ask for greedy decoding, the only kind
    that is implemented here."""
    return not settings.get("do_sample") and settings.get("num_beams", 1) == 1


def error_in_one_line(error: BaseException) -> str:
    """The type and the message of an error on one line; the message is cut to 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
