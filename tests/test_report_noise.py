"""The differences that a report shows, and their noise, against scipy and against formulas written out."""

import gzip
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablations.criteria import Criteria
from ablations.document.formats import markdown
from eval.report.comparison.findings import noise_for_planning
from eval.report.comparison.gather import gather_findings
from eval.report.comparison.predictions import interval_text
from eval.report.contents import make_sections
from eval.report.reading.runs import read_run
from eval.report.request import parse_request
from eval.report.sections.differences import largest_difference, noise_cells
from eval.report.sections.overview import verdict_clauses
from eval.statistics.comparison import apply_holm_correction, compare
from eval.statistics.parts import Variance
from eval.statistics.verdicts import items_alone_leave_undecided, seeds_to_decide
from tests.made_study import ARMS, Study, make, report, rewrite, section, shift, study, values  # noqa: F401  # a fixture


def test_numbers_equal_scipy_on_the_same_directories(study, tmp_path):
    """With item noise taken out of the samples, the p-value is that of the paired t-test over seeds."""
    for arm in study.arms:
        for seed in study.seeds:
            folder = study.cell(arm, seed).dir
            value = json.loads((folder / "eval.json").read_text())["bits_per_byte"]["value"]
            rewrite(folder, lambda row, value=value: row | {"nats": row["bytes"] * value * float(np.log(2))})
    report(study, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    comparison = next(c for c in record["comparisons"] if c["metric"] == "bits_per_byte")
    x = values(study, "bits_per_byte")
    assert comparison["p"] == pytest.approx(stats.ttest_rel(x[1], x[0]).pvalue, rel=1e-3)
    assert comparison["noise"] == pytest.approx(stats.sem(x[1] - x[0]), rel=1e-3)
    assert comparison["difference"] == pytest.approx((x[1] - x[0]).mean())


def test_the_items_are_paired(study, tmp_path):
    """The part of the noise that comes from the documents: over per-document differences, averaged over
    seeds."""
    report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| pos=alibi, bits/byte | ") and "d.o.f." in line)
    bits, bits_of = {}, {}
    for arm in study.arms:
        per_seed = []
        for seed in study.seeds:
            lines = map(json.loads, gzip.open(study.cell(arm, seed).dir / "samples.jsonl.gz", "rt"))
            per_seed.append([(line["nats"] / np.log(2), line["bytes"]) for line in lines if "nats" in line])
        bits[arm], bits_of[arm] = np.array(per_seed).mean(0), per_seed
    differences, sizes = bits["pos=alibi"][:, 0] - bits["pos=learned"][:, 0], bits["pos=alibi"][:, 1]
    drawn = np.random.default_rng(0).integers(0, 60, (4000, 60))
    bootstrapped = np.std(differences[drawn].sum(1) / sizes[drawn].sum(1))
    # what is left of single documents at single seeds is in the seeds' part, not here
    by_seed = np.array([[b for b, _ in seed] for seed in bits_of["pos=alibi"]]) - [
        [b for b, _ in s] for s in bits_of["pos=learned"]
    ]
    rest = by_seed / sizes - (by_seed / sizes).mean(0)
    alone = np.sqrt((rest**2 * sizes**2).sum() / (2 * 3)) / sizes.sum()
    assert float(row.split(" | ")[3].split(" (")[0]) == pytest.approx(
        np.sqrt(max(0, bootstrapped**2 - alone**2)), abs=0.0008
    )
    assert bootstrapped < 0.01 < 0.03 < np.std(bits["pos=alibi"][:, 0] / sizes) / 60**0.5


def test_no_interval_of_scores_is_wider_than_scores_can_be(study):
    """With one degree of freedom a difference of 5.5 points may have an interval of 760."""
    half = stats.t.isf(0.025, 1) * 30.0
    c = apply_holm_correction({"a": compare(-5.5, Variance(30.0**2, 1), Variance(0.0, np.inf))})["a"]
    assert interval_text(c, "zero-shot") == ", 95 % interval -100.00 to +100.00"
    assert interval_text(c, "zero-shot", 2) == ", 95 % interval -200.00 to +200.00"  # an interaction
    assert interval_text(c, "bits/byte") == f", 95 % interval {-5.5 - half:+.4f} to {-5.5 + half:+.4f}"
    findings = gather_findings(study)
    mean = values(study, "zero_shot").mean(1)[0]
    most = largest_difference(findings, "zero-shot")
    assert most == pytest.approx(100 - mean) and 50 < most < 100  # the baseline's score cannot rise by more
    assert largest_difference(findings, "bits/byte") == np.inf
    assert noise_cells(c, 2, most)[-2:] == ["none possible", "0.88"] and noise_cells(c, 2, np.inf)[-2] == f"{half:.2f}"


def test_several_arms_are_corrected_for_being_several(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    text = report(study, tmp_path / "out")
    alibi, none = text.splitlines()[2:4]
    assert "On zero-shot, pos=alibi: exploratory: better by 5.6 (5 × noise, p = 0.0" in text
    assert "; pos=none is undecided: " in text
    assert "better by 0.0" in alibi and none.split("    ")[-1].strip().startswith("undecided: ")
    three = {
        c["arm"]: c["p"]
        for c in json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"]
        if c["metric"] == "bits_per_byte"
    }
    x = values(study, "bits_per_byte")
    assert three["pos=none"] == 1.0 or three["pos=none"] > stats.ttest_rel(x[2], x[0]).pvalue / 2
    assert three["pos=alibi"] < 0.05


def test_one_seed_is_no_result(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1]))
    text = report(study, tmp_path / "out")
    assert text.splitlines()[2].endswith("undecided: one seed, not replicated")
    assert "better" not in text.replace("higher is better", "").replace("lower is better", "")


def test_the_noise_floor_has_what_the_arms_of_a_seed_share(tmp_path):
    """Two runs of one arm do not share it; a comparison of arms, and so what more seeds would see, is without it."""
    study, quiet = make(Study(tmp_path / "runs")), {}
    for size in (0.0, 0.1):
        for arm in study.arms:
            for seed in study.seeds:
                shift(study.cell(arm, seed).dir, size * seed)
        report(study, tmp_path / "out")
        words = (tmp_path / "out/report.md").read_text().split("**Noise floor, bits/byte.** ")[1]
        within = np.mean(np.var(values(study, "bits_per_byte"), axis=1, ddof=1))
        assert float(words.split(" bits/byte apart")[0].split()[-1]) == pytest.approx(
            stats.t.isf(0.025, 4) * np.sqrt(2 * within), abs=6e-5
        )
        quiet[size] = words.split(" a study of")[1].split("\n")[0]
    assert quiet[0.0] == quiet[0.1]


def test_recorded_noise_counts_the_seeds_that_two_arms_share(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2, 3, 4, 5]))
    for seed in (3, 4, 5):
        shutil.rmtree(study.cell("pos=alibi", seed).dir)
    report(study, tmp_path / "out")
    noise = json.loads((tmp_path / "out/run.json").read_text())["noise"]["bits/byte"]
    # without seeds one degree of freedom would be left, so it is the variance within arms (eval/statistics/seeds.py)
    rows = [
        [json.loads((study.cell(arm, seed).dir / "eval.json").read_text())["bits_per_byte"]["value"] for seed in seeds]
        for arm, seeds in zip(study.arms, (study.seeds, (1, 2)), strict=True)
    ]
    pooled = (4 * np.var(rows[0], ddof=1) + np.var(rows[1], ddof=1)) / 5
    assert noise["dof"] == 5 and noise["seed_sd"] == pytest.approx(np.sqrt(pooled))


def test_an_arm_whose_seeds_scatter_more_is_named(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS), seeds=[1, 2, 3, 4, 5]))
    assert "scatter more" not in report(study, tmp_path / "out")
    for seed in study.seeds:
        shift(study.cell("pos=none", seed).dir, 0.2 * (-1) ** seed)
    assert "pos=none: its seeds scatter more in bits/byte than those of" in report(study, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if "d.o.f." in line}
    assert "(4 d.o.f.)" in rows["| pos=none, bits/byte"] and "(8 d.o.f.)" in rows["| pos=alibi, bits/byte"]


def test_items_that_share_a_passage_are_no_independent_items(study, tmp_path):
    """Standard errors everywhere are those of passages; the rows say which items share one."""
    report(study, tmp_path / "before")
    for arm in study.arms:
        for seed in study.seeds:
            for task in ("bits_per_byte", "last_word"):
                rewrite(
                    study.cell(arm, seed).dir,
                    lambda row: row | {"cluster": f"пакет {int(re.sub(r'[^0-9]', '', row['id'])) % 8}"},
                    f"pydocs/{task}",
                )
    report(study, tmp_path / "out")
    rows = [json.loads(line) for line in gzip.open(study.cell("pos=alibi", 1).dir / "samples.jsonl.gz", "rt")]
    hits = {}
    for row in rows:
        if row["task"] == "pydocs/last_word":
            hits.setdefault(row["cluster"], []).append(row["value"])
    # 25 questions in each: the standard error of the mean of the passages' means
    error = stats.sem([np.mean(values) for values in hits.values()])
    lines = (tmp_path / "out/results.csv").read_text().splitlines()
    line = next(line for line in lines if line.startswith("pos=alibi,1,pydocs/last_word,"))
    assert float(line.split(",")[5]) == pytest.approx(error)
    assert "| pydocs/last_word | acc | 200 in 8 groups |" in (tmp_path / "out/report.md").read_text()
    noise = {
        name: json.loads((tmp_path / name / "run.json").read_text())["noise"]["bits/byte"] for name in ("before", "out")
    }
    assert noise["out"]["seed_sd"] == pytest.approx(noise["before"]["seed_sd"])
    one = next(c for c in json.loads((tmp_path / "out/run.json").read_text())["comparisons"])
    assert one["noise"] != json.loads((tmp_path / "before/run.json").read_text())["comparisons"][0]["noise"]


def test_one_held_out_document_gives_no_verdict(study, tmp_path):
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row | {"cluster": "one long book"})
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("undecided: 1 independent item, 3 are needed")
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [c["verdict"].split(":")[0] for c in record["comparisons"]] == ["undecided", "exploratory"]
    assert "p" not in record["comparisons"][0]
    text = (tmp_path / "out/report.md").read_text()
    assert "| undecided: 1 independent item, 3 are needed |" in section(
        text, "Differences from the baseline"
    ) and not re.search(r"\bnan\b", text)


def test_documents_of_no_bytes_are_no_items(study, tmp_path):
    """Two documents, and 58 that are empty; a number of bytes below 0 is damage."""
    empty = {"bytes": 0, "nats": 0.0}
    for arm in study.arms:
        for seed in study.seeds:
            rewrite(study.cell(arm, seed).dir, lambda row: row if row["id"] in ("d1", "d2") else row | empty)
    screen = report(study, tmp_path / "out")
    assert screen.splitlines()[2].endswith("undecided: 2 independent items, 3 are needed")
    rewrite(study.cell("pos=alibi", 1).dir, lambda row: row | {"bytes": -5 if row["id"] == "d9" else row["bytes"]})
    report(study, tmp_path / "out")
    assert "samples.jsonl.gz is damaged in line 10: bytes is below 0" in (tmp_path / "out/report.md").read_text()


def test_runs_without_common_seeds_are_not_paired(tmp_path):
    study = make(Study(tmp_path / "runs", seeds=[1, 2, 3, 4]))
    for arm, seeds in (("pos=alibi", (3, 4)), ("pos=learned", (1, 2))):
        for seed in seeds:
            shutil.rmtree(study.cell(arm, seed).dir)
    one = parse_request([f"RUNS={study.root}"]).study
    report(one, tmp_path / "out")
    comparison = json.loads((tmp_path / "out" / "run.json").read_text())["comparisons"][0]
    x = {
        arm: [
            json.loads(path.read_text())["bits_per_byte"]["value"]
            for path in sorted(study.root.glob(f"{arm},*/eval.json"))
        ]
        for arm in ARMS
    }
    assert comparison["difference"] == pytest.approx(np.mean(x["pos=learned"]) - np.mean(x["pos=alibi"]))
    seeds = np.sqrt((np.var(x["pos=learned"], ddof=1) + np.var(x["pos=alibi"], ddof=1)) / 2)
    assert comparison["noise"] >= seeds * 0.999


def test_noise_runs_tell_the_noise_of_a_study_with_one_seed(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS), seeds=[1]))
    more = make(Study(tmp_path / "noise", arms=["pos=learned"], seeds=[5, 6, 7, 8]))
    alone = report(study, tmp_path / "one")
    with_noise = report(study, tmp_path / "two", [more.cell("pos=learned", seed).dir for seed in more.seeds])
    assert [line.split("    ")[-1].strip() for line in alone.splitlines()[2:4]] == [
        "undecided: one seed, not replicated",
        "undecided: one seed, within noise",
    ]
    assert with_noise.splitlines()[2].endswith("one seed, not replicated") and with_noise.splitlines()[3].endswith(
        "within noise"
    )
    source = "these arms if they have several seeds: runs (seeds 5, 6, 7, 8); nano, 1,048,576 tokens."
    assert source in (tmp_path / "two/report.md").read_text() and source not in (tmp_path / "one/report.md").read_text()
    comparison = json.loads((tmp_path / "two" / "run.json").read_text())["comparisons"][0]
    sd = np.std(values(more, "bits_per_byte")[0], ddof=1)
    assert (
        comparison["noise"] >= np.sqrt(2) * sd and comparison["counts_above"] >= stats.t.isf(0.025, 3) * np.sqrt(2) * sd
    )


def test_items_that_add_nothing_to_the_seeds_are_no_noise_of_zero(tmp_path):
    """Each seed and document scatters on its own, documents not at all: half of such parts are estimated below zero."""
    study = make(Study(tmp_path / "runs"))
    rng = np.random.default_rng(3)
    for seed in study.seeds:
        for arm in study.arms:
            rewrite(
                study.cell(arm, seed).dir,
                lambda row: row | ({"nats": float(row["bytes"] * rng.normal(2.0, 0.2))} if "nats" in row else {}),
            )
    findings = gather_findings(study)
    assert findings.comparisons["bits/byte"]["pos=alibi"].items.variance == 0.0
    # a plan has the most that they may give: by leaving out each document once
    rows = {arm: [read_run(study.cell(arm, seed).dir)["samples"] for seed in study.seeds] for arm in study.arms}
    documents = [run["pydocs/bits_per_byte"] for run in rows["pos=learned"]]
    sizes = np.array([outcome.weight for outcome in documents[0].values()])
    bits = {
        arm: np.mean([[o.value for o in run["pydocs/bits_per_byte"].values()] for run in runs], axis=0)
        for arm, runs in rows.items()
    }
    d, n = bits["pos=alibi"] - bits["pos=learned"], len(sizes)
    without = [(d.sum() - d[i]) / (sizes.sum() - sizes[i]) for i in range(n)]
    jackknife = np.sqrt((n - 1) / n * ((np.array(without) - d.sum() / sizes.sum()) ** 2).sum())
    assert noise_for_planning(findings)["bits/byte"]["items"] == pytest.approx(jackknife)
    text = section(markdown("t", make_sections(findings)), "Differences from the baseline")
    assert "| not above zero |" in text and "| 0.0000 |" not in text
    assert 'if nothing of that estimate remains, the table says "not above zero"' in " ".join(text.split())


def grouped(study: Study, groups: int, spread: float, seed: int = 3) -> Study:
    """Makes the held-out documents of every run `groups` groups, each as noisy by itself as at a single seed, times
    `spread`."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(8)
    of_group = {(arm, g): fixed.normal(0, 0.02 * spread) for arm in study.arms for g in range(groups)}
    for arm in study.arms:
        for run_seed in study.seeds:
            single = rng.normal(0, 0.02, groups)

            def edit(row: dict, arm: str = arm, single: np.ndarray = single) -> dict:
                if "nats" not in row:
                    return row
                g = int(row["id"][1:]) % groups
                rate = 2.5 + (arm == "pos=alibi") * 0.03 + of_group[arm, g] + single[g]
                return row | {"bytes": 1000, "nats": 1000 * rate * float(np.log(2)), "cluster": f"g{g}"}

            rewrite(study.cell(arm, run_seed).dir, edit)
    return study


def test_more_seeds_are_not_said_to_tell_what_only_more_groups_would(tmp_path):
    """Four groups whose own noise is estimated as nothing: what more seeds would decide is said by the noise that the
    line on what a study sees has, by which seeds do not help."""
    study = grouped(make(Study(tmp_path / "runs", arms=["pos=learned", "pos=alibi"], seeds=[1, 2])), 4, 0.0, seed=2)
    findings = gather_findings(study)
    c = findings.comparisons["bits/byte"]["pos=alibi"]
    noise = noise_for_planning(findings)["bits/byte"]
    of_seeds, of_items = c.planning_variances
    assert noise["seed_sd"] == pytest.approx(of_seeds.variance**0.5) and noise["items"] == of_items.variance**0.5 > 0
    assert noise["items_dof"] == pytest.approx(3)
    hidden = replace(c, difference=0.99 * stats.t.isf(0.025, 3) * of_items.variance**0.5)
    assert seeds_to_decide(hidden, 2, 2) is None and items_alone_leave_undecided(hidden)
    estimated_as_nothing = replace(hidden, items=Variance(0.0, np.inf))
    assert seeds_to_decide(estimated_as_nothing, 2, 2) is None
    careless = replace(estimated_as_nothing, planned=None)
    assert seeds_to_decide(careless, 2, 2) is not None  # as it was said
    findings.comparisons["bits/byte"]["pos=alibi"] = replace(hidden, p=0.5, adjusted=0.5)
    words = "undecided: more seeds would not tell, more groups of items than these 4 would"
    assert findings.verdict_in_words("pos=alibi", "bits/byte") == words
    large = replace(c, difference=3 * stats.t.isf(0.025, 3) * of_items.variance**0.5)
    assert not items_alone_leave_undecided(large) and items_alone_leave_undecided(replace(large, family=1000))
    assert not items_alone_leave_undecided(hidden, margin=10.0)


def test_a_report_names_the_margins_of_measured_metrics_alone(tmp_path):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    made = replace(study, criteria=Criteria(seeds=3, margins={"bits/byte": 0.0001, "zero-shot": 1.0, "suite": 1.0}))
    report(made, tmp_path / "out")
    text = " ".join(section((tmp_path / "out/report.md").read_text(), "Differences from the baseline").split())
    assert "1 point in zero-shot" in text and "Margin of zero-shot: 1 point," in text
    assert "suite" not in text and "1 points" not in text and "bits/byte in bits/byte" not in text
    assert "For scores, in points, positive is better." in text
    top = (tmp_path / "out/report.md").read_text().split("## ")[0]
    assert "the noise of a difference is mostly much smaller" in top and "it says" not in top


def test_arms_that_are_undecided_for_the_same_reason_share_a_clause(tmp_path):
    findings = gather_findings(make(Study(tmp_path / "runs", arms=list(ARMS))))
    c = compare(0.001, Variance(1.0, 4), Variance(1.0, 3.0), independent=4)
    findings.comparisons["zero-shot"].update(apply_holm_correction({"pos=alibi": c, "pos=none": c}))
    words = "pos=alibi and pos=none are undecided: more seeds would not tell, more groups of items than these 4 would"
    assert verdict_clauses(findings, "zero-shot") == words
