"""Section: how to reproduce the study: command, commits and versions."""

from ablations.document.blocks import Code, Section
from eval.report.comparison.findings import Findings
from eval.report.reading.runs import in_one_line


def reproduction_section(findings: Findings) -> Section:
    runs = findings.runs
    commits = ", ".join(sorted({in_one_line(run["commit"]["sha"]) for run in runs})) or "unknown"
    versions = " | ".join(dict.fromkeys(in_one_line(run["versions"]) for run in runs)) or "unknown"
    left_out = [findings.study.left_out_of_command] if findings.study.left_out_of_command else []
    versions_in_words = f"Commit: {commits}. Versions: {versions}."
    return Section("How to redo it", [Code(findings.study.command), *left_out, versions_in_words])
