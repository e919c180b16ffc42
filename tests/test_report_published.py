"""Published numbers beside ours, scaling laws, and the cost of runs."""

import numpy as np
import pytest

from eval.report.comparison.gather import gather_findings
from eval.report.reading import expense
from eval.report.record import write_record_files
from eval.report.sections import published
from eval.report.sections.scaling import power_law
from eval.statistics.bootstrap import bootstrap_differences, bootstrap_interval
from eval.statistics.verdicts import verdict
from tests.made_study import FILES, section, study, values  # noqa: F401  # a fixture


def test_published_c4_and_pile_differ_by_less_than_the_noise():
    """The accuracies that the BigScience repository stores for its 1.3B models at 112B tokens, of 27 tasks:
    bigscience-workshop/bigscience @ 9e64ede, evaluation/results/{tr3,tr12}/*_agg.json."""
    table = published.load_published()["per_task"]
    numbers = np.array(list(table["rows"].values()), float)
    assert numbers.shape == (27, 4)
    assert numbers[:, 1:].mean(0) == pytest.approx([41.24, 42.53, 42.32], abs=0.006)
    p = numbers[:, 1:] / 100
    assert 100 * np.sqrt((p * (1 - p) / (numbers[:, :1] - 1)).sum(0)) / 27 == pytest.approx(0.41, abs=0.005)

    c, strata = published.task_difference("C4", "The Pile")
    assert c.difference == pytest.approx(0.21, abs=0.005) and c.noise == pytest.approx(0.41 * 2**0.5, abs=0.01)
    assert verdict(c, higher_is_better=True, digits=2).words == "undecided: one seed, within noise"
    low, high = bootstrap_interval(bootstrap_differences(strata, tasks=True), 27)
    assert low < 0 < high
    # one run of each: a difference that the items do not explain is still no result
    assert verdict(published.task_difference("C4", "OSCAR v1")[0], True).words == "undecided: one seed, not replicated"


def test_every_published_number_has_a_mark_and_a_source():
    content = published.load_published()
    for part in [
        *content["tables"],
        *content["external"],
        content["trajectories"],
        content["per_task"],
        content["scaling"],
    ]:
        assert part["mark"] in ("published", "computed", "unverified") and part["source"], part
    for table in content["tables"]:
        assert all(len(numbers) == len(published.table_columns(table)) for _, numbers in published.table_rows(table))
    paths = content["trajectories"]
    assert all(len(row) == len(paths["tokens"]) for row in paths["rows"].values())


def test_published_figures_stand_beside_a_study_of_the_same_factor(study, tmp_path):
    """Those that are marked unverified only where they are asked for."""
    for beside in ("checked", "none"):
        write_record_files(gather_findings(study, beside=beside), tmp_path / "out")
        for name in FILES:
            content = (tmp_path / "out" / name).read_text()
            assert "43.70" not in content and "nverified" not in content and "BigScience study" not in content
    write_record_files(gather_findings(study, beside="all"), tmp_path / "out")
    text = section((tmp_path / "out" / "report.md").read_text(), "Beside the BigScience study")
    assert "unverified, Table 2" in text and "Unverified" in text
    scores = values(study, "zero_shot").mean(1)
    line = next(line for line in text.splitlines() if line.startswith("| alibi | 43.70 | +1.99 |"))
    assert f"| {scores[1]:.1f} | {scores[1] - scores[0]:+.1f} |" in line
    assert "| rotary | 41.46 | -0.25 | - | - | - |" in text
    assert "| difference from learned | here" in text  # as ours are
    assert "Embedding norm" not in text


def test_power_law_of_the_lower_envelope():
    x = np.array([1e15, 1e16, 1e17, 1e18])
    points = [*zip(x, 3 * (x / 1e15) ** -0.05, strict=True), (5e16, 9.0), (2e18, 9.0)]  # two that are not on it
    fit = power_law(points)
    assert (fit["exponent"], fit["points"]) == (pytest.approx(0.05), 4)
    assert fit["scale"] * 1e15**-0.05 == pytest.approx(3)
    assert power_law(points[:2]) is None


@pytest.mark.parametrize(
    "device, ranks, threads, unit, hours, kwh",
    [
        ("AMD EPYC", 1, 2, "core", 2.0, 2 * 4.4 / 1000),
        ("NVIDIA H100 80GB HBM3", 8, 4, "GPU", 8.0, 8 * 0.7),
        ("NVIDIA H100 PCIe", 1, 4, "GPU", 1.0, 0.35),
        ("AMD Instinct MI300X", 1, 4, "GPU", 1.0, 0.75),
        ("NVIDIA Nonesuch", 2, 1, "GPU", 2.0, None),
    ],
)
def test_hours_and_energy(device, ranks, threads, unit, hours, kwh):
    hardware = {"device": device, "ranks": ranks, "threads": threads}
    cell = {
        "run": {"hardware": hardware, "config": {"model": {"pos": "x"}}},
        "metrics": [{"tokens": 5, "seconds": 3600.0}],
    }
    spent = expense.cost_so_far(cell)
    assert (spent["unit"], spent["hours"]) == (unit, hours)
    assert spent["kwh"] == (pytest.approx(kwh) if kwh else None)
    assert spent["flops"] is None  # a configuration of another version
