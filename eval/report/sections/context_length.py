"""Section: loss by context length, up to several times the training length, and how each position scheme extrapolates
beyond the training length."""

import numpy as np

from ablations import drawing
from ablations.document.blocks import Figure, Section, Table
from ablations.drawing import Line
from eval.report.comparison.findings import Findings
from eval.tasks.position import BEYOND_TRAINING_LENGTH

MULTIPLES = (1, 2, 4)  # of the training length, for which the table has a column


def context_length_section(findings: Findings) -> Section:
    title = "Beyond the training length"
    curves = {
        arm: [cell["eval"].get("by_position") for cell in seeds.values()]
        for arm, seeds in findings.cells_with_entry("eval").items()
    }
    complete = {arm: results for arm, results in curves.items() if all(results)}
    if not complete:
        return Section(title, [])
    measured = [result for results in curves.values() for result in results if result]
    longest = max(result["positions"][-1] for result in measured)
    tokens = min(result.get("tokens", 0) for result in measured)
    lines, rows = [], []
    marks: dict[str, float] = {}
    schemes: dict[str, list[str]] = {}
    for arm, results in complete.items():
        model = next(iter(findings.cells_with_entry("eval")[arm].values()))["run"]["config"]["model"]
        x, y = results[0]["positions"], np.mean([result["bits_per_byte"] for result in results], axis=0)
        lines.append(Line(arm, findings.colour(arm), x, y, findings.line_style(arm)))
        marks["training length"] = float(model["seq"])
        rows.append([arm, *losses_at_multiples(x, y, model["seq"], longest)])
        schemes.setdefault(BEYOND_TRAINING_LENGTH.get(model["pos"], ""), []).append(arm)
    return Section(
        title,
        [
            f"Each point is the loss of the same {tokens:,} tokens of held-out text with so many tokens before them, "
            "so a curve shows what a longer context gives or costs and not what is easier to predict "
            "(eval/tasks/position.py).",
            Figure(drawing.line_plot("Loss by position", lines, "tokens before", "bits/byte", marks=marks)),
            Table(
                ["arm", "training length", "2 ×", "4 ×", "change"], rows, "bits/byte with up to so many tokens before"
            ),
            "Beyond the training length:",
            "\n".join(f"* {', '.join(arms)}: {words}" for words, arms in schemes.items() if words),
        ],
    )


def losses_at_multiples(positions: list[float], losses: np.ndarray, seq: int, longest: float) -> list[str]:
    """Four table cells: the loss at 1, 2 and 4 times the training length (MULTIPLES), and the difference between the
    last of these and the first. A cell is "-" where the loss was not measured.

    Args:
        positions: the numbers of context tokens at which a curve was measured.
        losses: the loss at each position, in bits per byte.
        seq: the training length in tokens.
        longest: the largest position at which any arm was measured.
    """
    last = [max((i for i, p in enumerate(positions) if p < n * seq), default=0) for n in MULTIPLES]
    cells = [f"{losses[i]:.3f}" if positions[i] > n / 2 * seq else "-" for i, n in zip(last, MULTIPLES, strict=True)]
    reaches = positions[last[-1]] == longest > positions[last[0]]
    return [*cells, f"{losses[last[-1]] - losses[last[0]]:+.3f}" if reaches else "-"]
