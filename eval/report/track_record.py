"""How often the predictions in all records came true."""

from pathlib import Path
from typing import Any

from ablations import safe_files
from ablations.document.blocks import Table
from ablations.document.formats import plain_text
from ablations.safe_files import Damaged
from eval.report.comparison.predictions import FAILED, HELD, UNDECIDED


def read_predictions(folders: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the predictions of all records in some folders. Returns (predictions, a sentence for each damaged record). A
    prediction is {"record": name, "text", "metric", "outcome", "measured", "registered": whether before the runs}. If
    records have the same name, only the one in the earlier folder counts."""
    lines, damaged, names = [], [], set()
    for path in (path for folder in folders for path in sorted(folder.glob("*/run.json"))):
        if path.parent.name in names:  # the record in the first folder counts
            continue
        names.add(path.parent.name)
        try:
            record = safe_files.read_json(path, types={"predictions": list}) or {}
            for line in record.get("predictions") or []:
                texts = {key: str(line[key]) for key in ("text", "metric", "outcome", "measured")}
                lines.append({"record": path.parent.name, **texts, "registered": line["registered"] is True})
        except Damaged as error:
            damaged.append(str(error))
        except (KeyError, TypeError):
            damaged.append(f"{path} is damaged, or of another version: its predictions are not what a record has there")
    return lines, damaged


def outcome_counts(lines: list[dict[str, Any]]) -> dict[str, int]:
    """The number of predictions with each outcome: {outcome: number}. `lines`: predictions from `read_predictions`."""
    return {outcome: sum(line["outcome"] == outcome for line in lines) for outcome in (HELD, FAILED, UNDECIDED)}


def summary_text(lines: list[dict[str, Any]]) -> str:
    """Two sentences on how many predictions came true: of those that were registered before the runs, and of all.
    `lines`: predictions from `read_predictions`."""
    sentences = []
    for words, some in (("Registered before the runs", [x for x in lines if x["registered"]]), ("All", lines)):
        number = outcome_counts(some)
        decided = number[HELD] + number[FAILED]
        right = f", {number[HELD] / decided:.0%} of those that are decided held" if decided else ""
        sentences.append(f"{words}: {', '.join(f'{n} {outcome}' for outcome, n in number.items())}{right}.")
    return "\n".join(sentences)


def predictions_table(lines: list[dict[str, Any]]) -> str:
    """A table of predictions as text for the terminal. `lines`: predictions from `read_predictions`."""
    head = ["record", "predicted", "of", "outcome", "registered before the runs", "measured"]
    rows = [
        [x["record"], x["text"], x["metric"], x["outcome"], "yes" if x["registered"] else "no", x["measured"]]
        for x in lines
    ]
    return plain_text(Table(head, rows))
