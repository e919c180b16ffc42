"""Measures the noise floor of a baseline, from runs that differ only in the seed.

`python -m eval.report.noise STUDY=baseline SEEDS=5 FIRST_SEED=1001 SIZE=nano` writes it to ablations/noise, or to
OUT/noise where ablations/noise cannot be written. The noise floor uses other seeds than studies do, so that it is
estimated independently of their comparisons.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ablations import answers, safe_files
from ablations.rundir import Exit
from ablations.study import from_args
from ablations.words import change_to_checkout
from eval.report import request
from eval.report.comparison.compare import METRICS
from eval.report.comparison.findings import Findings
from eval.report.comparison.floor import floor_conditions, hash_of_task_conditions
from eval.report.comparison.gather import gather_findings
from eval.statistics.seeds import within_arm_variance

FOLDER = Path("ablations/noise")
CHECK = "--check"  # before the runs are trained
FEWEST_SEEDS = 3  # untuned; 2 would add a single degree of freedom


def noise_floor_content(findings: Findings) -> dict[str, Any]:
    """The noise floor of a study's baseline, as the JSON object that is stored (keys: ablations/noise_floor.py). Raises
    ValueError where fewer than FEWEST_SEEDS runs are finished and evaluated, or these were not trained and evaluated in
    the same way."""
    cells = {run: cell for run, cell in findings.cells.items() if run[0] == findings.baseline and "eval" in cell}
    if len(cells) < FEWEST_SEEDS:
        raise ValueError(f"{len(cells)} runs of {findings.baseline} are finished and judged: {FEWEST_SEEDS} are needed")
    first, *others = cells.values()
    for other in others:
        if floor_conditions(first) != floor_conditions(other):
            raise ValueError("the runs were not made and judged alike: the report of STUDY=baseline has what differs")
    config = first["run"]["config"]
    commits: list[dict[str, Any]] = []  # of all runs: one may have been trained by other code than the next
    for cell in cells.values():
        if cell["run"]["commit"] not in commits:
            commits.append(cell["run"]["commit"])
    metrics = {}
    for name, metric in METRICS.items():
        row = findings.results.get(name, {}).get(findings.baseline, {})
        if len(row) < FEWEST_SEEDS:
            continue
        floor = within_arm_variance({findings.baseline: row})
        assert floor
        metrics[name] = {
            "unit": metric.unit,
            "sd": floor.variance**0.5,
            "dof": floor.dof,
            "tasks": hash_of_task_conditions(first, name),
            "results": {cells[findings.baseline, seed]["run"]["fingerprint"]: value for seed, value in row.items()},
        }
    return {
        "size": config.get("size"),
        "tokens": config["train"]["tokens"],
        **floor_conditions(first),
        "metrics": metrics,
        "runs": {cell["run"]["fingerprint"]: seed for (_, seed), cell in cells.items()},
        **{key: first["run"][key] for key in ("commit", "versions", "hardware")},
        "commits": commits,
    }


def main(words: list[str]) -> int:
    """Write the noise floor of a study's baseline; with --check as the first word, only check the words. Exit codes: 0;
    1, the noise floor cannot be written; 2, the words are not valid or no noise floor can be measured."""
    as_json = answers.asks_for_json(words)
    try:
        check, words = words[:1] == [CHECK], [word for word in words if word != CHECK]
        _, words = answers.extract_format(words)
        if check:
            if (seeds := len(from_args(words).seeds)) < FEWEST_SEEDS:
                raise ValueError(f"SEEDS={seeds}: a noise floor is measured by {FEWEST_SEEDS} runs or more")
            return Exit.FINISHED
        study = request.parse_request(words).study
        content = noise_floor_content(gather_findings(study))
    except (ValueError, OSError) as error:
        answers.print_error(str(error), as_json)
        return Exit.INVALID
    for folder in (FOLDER, request.out_folder(words) / "noise"):
        path = folder / f"{study.name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            safe_files.write_text(path, json.dumps(content, indent=1) + "\n")
            break
        except OSError as error:
            print(f"{path}: {error}", file=sys.stderr)
    else:
        if as_json:
            print(answers.json_error("the noise floor cannot be written; the reasons stand on standard error"))
        return Exit.FAILED
    if as_json:
        print(answers.json_answer("noise", {"written": str(path), "floor": content}))
        return Exit.FINISHED
    print(f"{path}: of {len(content['runs'])} runs that differ in the seed alone, {content['tokens']:,} tokens each")
    for name, metric in content["metrics"].items():
        print(f"  {name}: s.d. {metric['sd']:.2g} {metric['unit']}, {metric['dof']} degrees of freedom")
    print(f"a study of the same baseline is judged with it by NOISE_FLOOR={path}")
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main(change_to_checkout(sys.argv[1:])))
