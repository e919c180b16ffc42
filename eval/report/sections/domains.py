"""Section: the held-out loss of each domain, where the text has several."""

from math import nan

import numpy as np

from ablations.document.blocks import Section, Table, plus_minus
from eval.report.comparison.findings import Findings


def domains_section(findings: Findings) -> Section:
    title = "Loss by domain"
    results = {
        arm: [
            {
                (corpus, domain): entry
                for corpus, domains in (cell["eval"].get("by_domain") or {}).items()
                for domain, entry in domains.items()
            }
            for cell in seeds.values()
        ]
        for arm, seeds in findings.cells_with_entry("eval").items()
    }
    names = list(dict.fromkeys(name for cells in results.values() for cell in cells for name in cell))
    arms = [arm for arm, cells in results.items() if any(cells)]
    if not names:
        return Section(title, [])
    one_corpus = len({corpus for corpus, _ in names}) == 1
    lines = []
    for name in names:
        corpus, domain = name
        line = [domain if one_corpus else f"{domain}, of {corpus}"]
        for arm in arms:
            entries = [cell[name] for cell in results[arm] if name in cell]
            line.append(mean_loss_text(entries) if entries else "-")
        documents = max((cell[name]["n"] for cells in results.values() for cell in cells if name in cell), default=0)
        lines.append([*line, str(documents)])
    return Section(
        title,
        [
            "Bits per byte of held-out text by domain, mean over seeds ± standard error over documents.",
            Table(["domain", *arms, "documents"], lines),
        ],
    )


def mean_loss_text(entries: list[dict]) -> str:
    """The mean loss of a domain over seeds as text, with its standard error over documents; without a standard error
    where the domain has a single document. `entries`: for each seed the domain's entry in eval.json."""
    value = float(np.mean([entry["value"] for entry in entries]))
    errors = [entry["stderr"] for entry in entries if entry.get("stderr") is not None]
    return plus_minus(value, float(np.mean(errors)) if len(errors) == len(entries) else nan, 3)
