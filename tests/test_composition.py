"""The section on what the corpora of a study were made of, and what run.json records for it."""

import json
from pathlib import Path
from typing import Any

import yaml

from data import corpus as corpora
from data import prepare
from eval.report.comparison.gather import gather_findings
from eval.report.record import record_content
from eval.report.sections import composition
from tests.made_study import Study, change, full, make, report, study  # noqa: F401  # a fixture

PARTS = {"книги": (0.75, 3_000_000, 700), "corpora/wiki": (0.25, 1_000_000, 40)}
TITLE = "## Corpora"


def section_of(study: Study, out: Path) -> str:
    """The section of the written report; "" where it is not there."""
    report(study, out)
    text = (out / "report.md").read_text("utf-8")
    return text.split(f"{TITLE}\n\n")[1].split("\n\n## ")[0] if TITLE in text else ""


def blend(study: Study, arm: str, **more: Any) -> None:
    """Make the runs of an arm those of a blend, as `launch.manifest` records it."""
    parts = [
        {"prefix": "p", "corpus": name, "weight": share, "tokens": tokens, "documents": documents, "bytes": 1}
        for name, (share, tokens, documents) in PARTS.items()
    ]
    epochs = [
        {"corpus": name, "share": share, "tokens": tokens, "epochs": 1_048_576 * share / tokens}
        for name, (share, tokens, _) in PARTS.items()
    ]
    sources = {"книги": {"files": 3, "bytes": 5, "sha256": "ab" * 32, "names": ["a.txt"]}, "corpora/wiki": None}
    for seed in study.seeds:
        path = study.cell(arm, seed).dir / "run.json"
        data = json.loads(path.read_text())["data"] | {"corpus": "blends/ours.yaml", "sha256": "cd" * 32}
        change(path, "data", to=data | {"train": parts, "epochs": epochs, "sources": sources} | more)
        change(path, "config", "data", "corpus", to="blends/ours.yaml")


def test_a_study_of_a_corpus_of_ours_alone_has_no_such_section(study: Study, tmp_path: Path) -> None:
    assert section_of(study, tmp_path / "out") == ""
    assert [text["corpus"] for text in record_content(gather_findings(study))["corpora"]] == ["pydocs"]


def test_a_blend_is_shown_with_its_sources_and_can_be_made_again(study: Study, tmp_path: Path) -> None:
    blend(study, "pos=alibi", corpora={"blends/ours.yaml": {"blend": list(PARTS), "alpha": 0.5, "sources": {}}})
    text = section_of(study, tmp_path / "out")
    first = f"| blends/ours.yaml | книги | 75.00% | 700 | 3,000,000 | {0.75 * 1_048_576 / 3e6:.3g} | 3 | {'ab' * 8} |"
    second = f"| blends/ours.yaml | corpora/wiki | 25.00% | 40 | 1,000,000 | {0.25 * 1.048576:.3g} | packages | - |"
    assert first in text and second in text
    assert f"* blends/ours.yaml, in pos=alibi: {'cd' * 32}" in text and "* pydocs, in pos=learned: text" in text
    assert "| pydocs | 60 | " in text  # the held-out text
    again = yaml.safe_load(text.split("```\n")[1])
    assert again == {"blend": ["книги", "corpora/wiki"], "alpha": 0.5}
    (kept,) = (
        kept for kept in record_content(gather_findings(study))["corpora"] if kept["corpus"] == "blends/ours.yaml"
    )
    assert [part["share"] for part in kept["sources"]] == [0.75, 0.25] and kept["arms"] == ["pos=alibi"]
    assert kept["sources"][0]["identity"]["sha256"] == "ab" * 32 and kept["sources"][1]["identity"] == "packages"


def test_a_run_that_recorded_less_is_shown_as_far_as_it_did(study: Study, tmp_path: Path) -> None:
    """Earlier versions wrote neither the blend's file nor the documents of each source, but those after each step."""
    parts = [{"corpus": name, "weight": share, "tokens": tokens} for name, (share, tokens, _) in PARTS.items()]
    steps = [{"corpus": "книги", "step": "duplicates", "in": [20, 1], "out": [17, 1]}]
    blend(study, "pos=alibi", train=parts, steps=steps, sources={"книги": {"files": 3}})
    text = section_of(study, tmp_path / "out")
    assert "| книги | 75.00% | 17 | 3,000,000 |" in text and "| corpora/wiki | 25.00% | unknown |" in text
    assert "with the weights that it came to" in text
    assert yaml.safe_load(text.split("```\n")[1])["blend"] == {"книги": 0.75, "corpora/wiki": 0.25}


def test_nonsense_in_a_strangers_run_json_ends_no_report(study: Study, tmp_path: Path) -> None:
    blend(study, "pos=alibi", corpora={"a\x1b[2J": {"blend": {"b": 1}}})
    findings = gather_findings(study)
    data = findings.cells["pos=alibi", 1]["run"]["data"]
    for nonsense in (None, 3, "x", [], [3], [{"corpus": 1}], {"a": 1}):
        for key in ("train", "epochs", "sources", "steps", "corpora"):
            findings.cells["pos=alibi", 1]["run"]["data"] = data | {key: nonsense}
            assert composition.composition_section(findings).blocks and composition.texts_for_record(findings), (
                key,
                nonsense,
            )
    assert "\x1b" not in section_of(study, tmp_path / "control")


def test_a_study_judged_on_two_corpora_lists_their_held_out_text(tmp_path: Path) -> None:
    made = full(make(Study(tmp_path / "runs")))
    blend(made, "pos=alibi")
    text = section_of(made, tmp_path / "out")
    assert "| pydocs | 60 | " in text and "| pycode | 60 | " in text


def test_run_json_has_what_a_blend_is_made_of(tmp_path: Path) -> None:
    """The entry gives a file that is loaded as the same blend; nothing is read for it."""
    for name in ("eins", "zwei"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "été.txt").write_text("one\n\ntwo", "utf-8")
    weights, by_size = tmp_path / "weights.yaml", tmp_path / "by_size.yaml"
    weights.write_text("blend: {eins: 3, zwei: 1}")
    by_size.write_text("blend: [eins, zwei]\nalpha: 0.5")
    assert prepare.corpus_composition(str(weights), tmp_path / "store")["sources"] == {}  # no file was hashed yet
    for path in (weights, by_size):
        prepare.source_identities(str(path), tmp_path / "store")
        made = prepare.corpus_composition(str(path), tmp_path / "store")
        assert json.loads(json.dumps(made)) == made
        assert [made["sources"][str(tmp_path / name)]["names"] for name in ("eins", "zwei")] == [["été.txt"]] * 2
        again = tmp_path / "again.yaml"
        again.write_text(composition.blend_file(str(path), made["blend"], made["alpha"]), "utf-8")
        loaded = [corpora.load_specification(str(file)) for file in (path, again)]
        assert [spec["blend"] for spec in loaded] == [loaded[0]["blend"]] * 2
        assert [spec["alpha"] for spec in loaded] == [loaded[0]["alpha"]] * 2
    assert prepare.corpus_composition(str(tmp_path / "gone"), tmp_path / "store") == {"sources": {}}
    assert prepare.corpus_composition("pydocs", tmp_path / "store") == {"sources": {"pydocs": None}}
