"""Section: the ranking of runs that were not planned as one study, and which of them cannot be ranked together."""

import numpy as np

from ablations.document.blocks import Block, Section, Table
from ablations.values import short_number
from eval.report.comparison.comparable import group_by_evaluation
from eval.report.comparison.compare import METRICS, rank_arms
from eval.report.comparison.findings import Findings
from eval.report.reading.short_names import shortest_ends
from eval.report.sections.settings import configurations


def ranking_section(findings: Findings) -> Section:
    if findings.controlled:
        return Section("Places", [])
    blocks: list[Block] = []
    if findings.refusals:
        blocks += [
            "**Not ranked together: these runs were evaluated differently.**",
            "\n".join(f"* {line}" for line in findings.refusals),
        ]
    tables = []
    for name, metric in METRICS.items():
        for ranks, means in (
            rank_arms(findings.study, findings.cells, findings.results[name], name) if name in findings.results else ()
        ):
            if len(ranks) > 1:
                order = sorted(ranks, key=means.__getitem__, reverse=metric.higher_is_better)
                lines = [[ranks[arm], arm, f"{means[arm]:.{metric.digits}f}"] for arm in order]
                tables.append(Table(["place", "runs", name], lines))
    if tables:
        blocks.append(
            "The place, or the places, that each may have: only a difference that is more than noise parts two runs. "
            "Every pair compared, corrected for the number of pairs."
        )
    return Section("Places", [*blocks, *tables, *corpora_by_tokens(findings)])


def corpora_by_tokens(findings: Findings) -> list[Table]:
    """A list with one table: the mean score of each corpus at each budget in tokens. [] where there is only one corpus
    or one budget. Runs that were evaluated differently from the first run are left out."""
    name = list(findings.results)[-1]
    scores: dict[str, dict[int, list[str]]] = {}
    classes = group_by_evaluation(findings.cells) if findings.results[name] else []
    comparable = {arm for arm, _ in classes[0]} if classes else set()
    configs = configurations(findings)
    short_names = shortest_ends(config["data.corpus"] for config in configs.values())
    for arm, config in configs.items():
        if (
            (row := findings.results[name][arm])
            and arm in comparable
            and config.get("train.budget", "tokens") == "tokens"
        ):
            corpus = f"{short_names[config['data.corpus']]}, {len(row)} seeds"
            mean = f"{np.mean(list(row.values())):.{METRICS[name].digits}f}"
            scores.setdefault(corpus, {}).setdefault(config["train.tokens"], []).append(mean)
    budgets = sorted({tokens for row in scores.values() for tokens in row})
    if len(scores) < 2 or len(budgets) < 2:
        return []
    lines = [[corpus, *(" / ".join(row.get(tokens, ["-"])) for tokens in budgets)] for corpus, row in scores.items()]
    return [Table(["trained on", *map(short_number, budgets)], lines, f"Corpora and tokens: {name}")]
