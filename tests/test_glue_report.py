"""The section GLUE of a report: both means by name, published rows with their marks, collapsed seeds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ablations.safe_files import Damaged
from eval.finetune.__main__ import table_text
from eval.finetune.results import summarise_over_seeds
from eval.finetune.tasks import Example
from eval.finetune.train import score_predictions
from eval.report.reading.runs import read_glue_table
from eval.report.sections import glue

CHANCE = dict.fromkeys(("accuracy", "f1", "mcc", "pearson", "spearman"), 0.0)


def table(mnli: float, mm: float, rest: float, spearman: float, collapsed: bool = False) -> dict[str, Any]:
    """Of one seed: all other tasks score `rest` by every metric but STS-B's Spearman."""
    results = {}
    for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"):
        scores = dict.fromkeys(CHANCE, rest) | {"spearman": spearman}
        one = {"metrics": scores, "chance": CHANCE, "collapsed": collapsed and name == "cola", "items": [{}] * 7}
        sets = {"dev": one}
        if name == "mnli":
            sets = {
                "dev_matched": one | {"metrics": CHANCE | {"accuracy": mnli}},
                "dev_mismatched": one | {"metrics": CHANCE | {"accuracy": mm}},
            }
        results[name] = [{"sets": sets}]
    return summarise_over_seeds(results)


def rows(beside: str, tables: list[dict[str, Any]]) -> dict[str, list[str]]:
    cells = {"baseline": {seed: {"glue": one} for seed, one in enumerate(tables)}}
    section = glue.glue_section(
        SimpleNamespace(cells_with_entry=lambda key: cells, published_shown=beside, external=[])
    )  # type: ignore[arg-type]
    _, made = section.blocks
    header, lines = made.head, made.rows
    assert header[-3:] == ["mean of nine", "of eight tasks", "of eight, leaderboard"]
    return {str(line[0]): [str(cell) for cell in line[1:]] for line in lines}


def test_both_means_are_named_and_collapsed_seeds_marked() -> None:
    got = rows("none", [table(0.8, 0.6, 0.5, 0.1, collapsed=True)])
    # (0.8 + 0.6 + 7 x 0.5) / 9; (0.7 + 7 x 0.5) / 8; and there STS-B counts (0.5 + 0.1) / 2
    assert got["baseline"][-3:] == ["54.4", "52.5", "50.0"] and "50.0*" in got["baseline"]
    assert set(got) == {"baseline", "chance", "one answer to all", "items"}
    assert got["items"][:9] == ["7"] * 9 and got["one answer to all"][:9] == ["-"] * 9  # of an earlier version


def test_one_answer_to_all_stands_beside_chance() -> None:
    """MRPC with 181 paraphrases of 266: always yes has an F1 of 2 x 181 / (266 + 181) and an accuracy of 181 / 266."""
    examples = [Example(str(i), "a", "b", float(i < 181)) for i in range(266)]
    rng = np.random.default_rng(0)
    made = summarise_over_seeds({"mrpc": [{"sets": {"dev": score_predictions(rng.normal(size=(266, 2)), examples)}}]})
    entry = made["scores"]["mrpc"]
    assert entry["study"]["constant"] == pytest.approx(100 * 362 / 447) and entry["study"]["items"] == 266
    assert entry["leaderboard"]["constant"] == pytest.approx(50 * (362 / 447 + 181 / 266))
    assert entry["study"]["chance"] == pytest.approx(100 * 181 / (181 + 133))  # a coin is right half the time
    got = rows("none", [made])
    assert [got[name][0] for name in ("chance", "one answer to all", "items")] == ["57.6", "81.0", "266"]
    assert "266 items; chance 57.6, one answer to all 81.0)" in table_text(made)
    nli = [Example(str(i), "a", "b", float(i % 5 // 2)) for i in range(10)]  # 4, 4 and 2 of three classes
    three = score_predictions(rng.normal(size=(10, 3)), nli)["constant"]
    assert [round(each["accuracy"], 9) for each in three] == [0.4, 0.4, 0.2]
    assert (
        "constant"
        not in summarise_over_seeds({"stsb": [{"sets": {"dev": score_predictions(rng.normal(size=(10, 1)), nli)}}]})[
            "scores"
        ]["stsb"]["study"]
    )


def test_published_rows_have_their_mark_and_what_is_unverified_is_asked_for() -> None:
    checked, everything = (set(rows(beside, [table(0.8, 0.6, 0.5, 0.1)])) for beside in ("checked", "all"))
    assert {"BERT-base fully trained (published)", "crammed v2, A6000 (secondary)"} <= checked
    assert everything - checked == {"crammed v1, A4000 (unverified)", "crammed v1, 2080 Ti (unverified)"}


def test_the_eight_task_means_of_the_published_rows() -> None:
    """Worked out by hand: 80.65 of BERT, 84.99 of RoBERTa, 77.93 of crammed v1."""
    got = rows("checked", [table(0.8, 0.6, 0.5, 0.1)])
    assert got["BERT-base fully trained (published)"][-3:-1] == ["80.9", "80.7"]
    assert got["RoBERTa-base (published)"][-3:-1] == ["85.1", "85.0"]
    assert got["crammed v1, A6000 (published)"][-3:-1] == ["78.6", "77.9"]
    assert got["crammed v2, A6000 (secondary)"][-3:-1] == ["80.4", "-"]


def test_a_table_whose_means_or_medians_are_not_those_of_its_scores_is_damage(tmp_path: Path) -> None:
    whole = table(0.8, 0.79, 0.6, 0.7)
    path = tmp_path / "glue.json"
    path.write_text(json.dumps(whole))
    assert read_glue_table(path) == whole
    for keys, value, why in (
        (("study", "nine_numbers"), 99.0, "the means of study are not those of its scores"),
        (("leaderboard", "eight_tasks"), None, "the means of leaderboard are not those of its scores"),
        (("scores", "cola", "study", "median"), 99.0, "the median of cola is not between its lowest and highest score"),
    ):
        forged = json.loads(path.read_text())
        *above, last = keys
        entry = forged
        for key in above:
            entry = entry[key]
        entry[last] = value
        (tmp_path / "forged.json").write_text(json.dumps(forged))
        with pytest.raises(Damaged, match=why):
            read_glue_table(tmp_path / "forged.json")
