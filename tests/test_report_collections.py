"""Reports of runs that are no single study: of others, of several studies, on corpora given by path."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from eval.report.__main__ import main
from eval.report.comparison.gather import gather_findings
from eval.report.reading.short_names import shortest_ends
from eval.report.request import parse_request
from tests.made_study import ARMS, FILES, Cell, Study, change, config, make, report, section, study  # noqa: F401  # a fixture


def test_runs_that_others_send_are_compared_without_a_study(tmp_path, capsys, monkeypatch):
    study = make(Study(tmp_path / "runs", arms=list(ARMS)))
    one, noise = parse_request([f"RUNS={study.root}"])[:2]
    assert one.arms == ["alibi", "learned", "none"] and one.seeds == [1, 2, 3] and noise == []
    text = report(one, tmp_path / "out")
    assert "learned" in text.splitlines()[2] and "worse by 0.0" in text.splitlines()[2]
    assert str(tmp_path) not in (tmp_path / "out" / "report.md").read_text()
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "| 1 | alibi |" in places and "| 2–3 | learned |" in places and "| 2–3 | none |" in places
    both = f"RUNS={study.cell('pos=none', 1).dir} {study.cell('pos=learned', 1).dir}"
    assert parse_request([both]).study.arms == ["none", "learned"]  # in the order in which they are named
    for words, why in (([f"RUNS={tmp_path / 'nowhere'}"], "is no run directory"), ([both, both], "is given twice")):
        assert main(words) == 2
        assert why in capsys.readouterr().err


def test_a_run_that_lies_in_two_folders_counts_once_where_its_results_are_the_same(study, tmp_path, monkeypatch):
    """As the baseline of studies that were made in different OUTs."""
    other = tmp_path / "other"
    for seed in study.seeds:
        shutil.copytree(study.cell("pos=learned", seed).dir, other / f"pos=learned,seed={seed}")
    change(other / "pos=learned,seed=1" / "eval.json", "seconds", to=1234.5)
    both = parse_request([f"RUNS={study.root} {other}"]).study
    assert both.runs == parse_request([f"RUNS={study.root}"]).study.runs
    change(other / "pos=learned,seed=2" / "eval.json", "weights_sha256", to="others")
    with pytest.raises(
        ValueError, match="seed=2 are the same run, one configuration and seed 2, with different"
    ) as said:
        parse_request([f"RUNS={study.root} {other}"])
    advised = re.search("RUNS='(.*)'", str(said.value))[1].replace("ARM", "pos=alibi")
    assert advised == f"{study.root} {other}/pos=alibi,seed=*"
    (other / "pos=learned,seed=2" / "eval.json").unlink()
    with pytest.raises(ValueError, match="or not both are judged"):
        parse_request([f"RUNS={study.root} {other}"])


@pytest.mark.parametrize(
    "keys, to, why",
    [
        (["version"], 2, "version 2, not 1"),
        (["lm_eval"], "0.5", "lm_eval 0.5, not 0.4.13"),
        (["precision"], "bf16", "precision bf16, not unknown"),
    ],
)
def test_runs_that_were_evaluated_differently_are_not_ranked(tmp_path, keys, to, why):
    study = make(Study(tmp_path / "runs"))
    for seed in study.seeds:
        change(study.cell("pos=alibi", seed).dir / "eval.json", *keys, to=to)
    one = parse_request([f"RUNS={study.root}"]).study
    text = report(one, tmp_path / "out")
    assert text.splitlines()[2].endswith("evaluated differently: not compared")
    assert "better" not in text.split("±:")[0].replace("is better", "")
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "Not ranked together" in places and "| 1 |" not in places and "| 2 |" not in places
    assert "learned (seeds 1, 2, 3): " in places
    assert why in places or why.replace(f"{to}, not", "").split()[0] in places


def test_runs_may_lie_in_a_folder_with_a_space(study, tmp_path):
    shutil.copytree(study.root, tmp_path / "their runs")
    assert len(parse_request([f"RUNS={tmp_path / 'their runs'}"]).study.runs) == 6
    one = parse_request(
        [f"RUNS='{tmp_path}/their runs/pos=none,seed=1' '{study.root}/pos=alibi,seed=2'".replace("none", "learned")]
    )
    assert len(one.study.runs) == 2 and str(tmp_path) not in one.study.command


def test_arms_with_different_seeds_are_named_since_the_means_of_the_table_are_over_different_seeds(study, tmp_path):
    assert gather_findings(parse_request([f"RUNS={study.root}"]).study).mismatches == []
    shutil.rmtree(study.cell("pos=alibi", 1).dir)
    one = parse_request([f"RUNS={study.root}"]).study
    report(one, tmp_path / "out")
    (line,) = section((tmp_path / "out/report.md").read_text(), "What does not match").splitlines()
    assert line.startswith("* arms have different seeds, alibi (seeds 2, 3); learned (seeds 1, 2, 3): the means in the")


def test_the_command_of_a_comparison_is_accepted_again_or_says_what_it_lacks(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = "runs/pos=learned,seed=1 runs/pos=alibi,seed=1"
    one = parse_request([f"RUNS={names}", "OUT=some/where"]).study
    assert one.command == f"make report OUT=some/where RUNS='{names}'" and not one.left_out_of_command
    assert parse_request(shlex.split(one.command)[2:]).study == one
    words = ["POS=alibi", "SIZE=nano", "TASKS=piqa", f"EVAL_DATA={tmp_path}/e", f"GLUE={tmp_path}/a/b,c"]
    words.append(f"RUNS={study.root}")
    inside = parse_request(words).study
    assert inside.command == "make report EVAL_DATA=e GLUE=a/b,c POS=alibi RUNS=runs SIZE=nano TASKS=piqa"
    assert not inside.left_out_of_command
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outside = parse_request(words).study
    assert outside.command == "make report EVAL_DATA=e GLUE=b,c POS=alibi RUNS=runs SIZE=nano TASKS=piqa"
    assert outside.left_out_of_command.startswith("EVAL_DATA=, GLUE= and RUNS=: of an absolute path only the end is")
    away = parse_request([f"RUNS={study.root}", "OUT=some/where"]).study
    assert away.command == "make report OUT=some/where RUNS=runs"
    report(away, tmp_path / "out")
    said = section((tmp_path / "out/report.md").read_text(), "How to redo it")
    assert "RUNS=: of an absolute path only the end is named here. Put the folder that it lies in" in said


def test_several_studies_share_their_baseline(tmp_path, monkeypatch):
    from ablations import study as studies

    study = make(Study(tmp_path / "runs", arms=list(ARMS)))

    class Planned:
        def __init__(self, name, arms):
            self.factor = name
            self.cells = [study.cell(arm, seed) for arm in arms for seed in study.seeds]

    plans = {"a": Planned("a", ["pos=learned", "pos=alibi"]), "b": Planned("b", ["pos=learned", "pos=none"])}
    monkeypatch.setattr(studies, "from_args", lambda words: plans[words[0].removeprefix("STUDY=")])
    one = parse_request(["STUDY=a,b"]).study
    assert one.arms == ["learned", "alibi", "none"] and len(one.runs) == 9


class ByPath(Study):
    """Arms that are corpora given by path, each judged on the held-out text of all of them."""

    def cell(self, arm: str, seed: int) -> Cell:
        made_arm = list(ARMS)[self.arms.index(arm)]
        corpora = [arm.removeprefix("corpus=") for arm in self.arms]
        settings = config(made_arm, seed) | {"eval": {"corpora": corpora}}
        settings["model"]["pos"] = "learned"
        settings["data"]["corpus"] = arm.removeprefix("corpus=")
        delta = {} if arm == self.arms[0] else {"data.corpus": arm.removeprefix("corpus=")}
        return Cell(self.root / f"{made_arm},seed={seed}", settings, delta)


def by_path(root: Path, *corpora: str) -> ByPath:
    study = ByPath(root, [f"corpus={entry}" for entry in corpora], [1, 2])
    make(Study(root, list(ARMS)[: len(corpora)], study.seeds))
    for arm in study.arms:
        for seed in study.seeds:
            cell = study.cell(arm, seed)
            change(cell.dir / "run.json", "config", to=cell.config)
            change(cell.dir / "run.json", "delta", to=cell.delta)
            result = json.loads((cell.dir / "eval.json").read_text())
            result["tasks"] = {
                f"{corpus}/{task.removeprefix('pydocs/')}": entry
                for corpus in corpora
                for task, entry in result["tasks"].items()
            }
            entry = {"value": 2.0, "stderr": 0.05, "bytes": 9, "n": 3}
            result |= {
                "corpora": list(corpora),
                "by_domain": {corpus: {"Github": entry} for corpus in corpora},
                "omitted": [f"{corpora[0]}/copy_inside"],
            }
            (cell.dir / "eval.json").write_text(json.dumps(result))
            rows = gzip.decompress((cell.dir / "samples.jsonl.gz").read_bytes()).decode()
            rows = "".join(rows.replace('"pydocs/', f'"{corpus}/') for corpus in corpora)
            (cell.dir / "samples.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    return study


@pytest.mark.parametrize(
    "names, short",
    [
        (["pydocs", "/data/web.jsonl"], ["pydocs", "web.jsonl"]),
        (["/data/a/web.jsonl", "/data/b/web.jsonl"], ["a/web.jsonl", "b/web.jsonl"]),
        (["/x/a/en/1.txt", "/x/b/en/1.txt", "/x/b/fr/1.txt"], ["a/en/1.txt", "b/en/1.txt", "fr/1.txt"]),
        (["/data/c4/*.json.gz", "/data/pile"], ["c4/*.json.gz", "pile"]),  # a wildcard alone tells nothing
        (["/data/c4/*/*.gz", "/data/pile/*/*.gz"], ["c4/*/*.gz", "pile/*/*.gz"]),
        (["web.jsonl", "a/web.jsonl", "b/a/web.jsonl"], ["web.jsonl", "a/web.jsonl", "b/a/web.jsonl"]),
        (["/a.jsonl", "oscar:fr", "*.gz"], ["a.jsonl", "oscar:fr", "*.gz"]),
        ([], []),
    ],
)
def test_paths_are_told_apart_by_their_ends(names, short):
    assert list(shortest_ends(names).values()) == short and list(shortest_ends(names)) == names


ONE, OTHER = "/home/someone/corpora of mine/a/web.jsonl", "/home/someone/corpora of mine/b/web.jsonl"


@pytest.mark.parametrize(
    "corpora, short",
    [
        ((ONE, OTHER), ("a/web.jsonl", "b/web.jsonl")),
        (("pydocs", ONE), ("pydocs", "web.jsonl")),
        ((ONE, f"{ONE}/en"), ("web.jsonl", "en")),
        (("a/web", "za/web/en", "/q/za/web/en"), ("web", "za/web/en", "q/za/web/en")),
    ],
)
def test_corpora_by_path_have_their_short_names_in_every_table_and_legend(tmp_path, corpora, short):
    study = by_path(tmp_path / "runs", *corpora)
    screen = report(study, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"\ncorpus={short[0]} (baseline) " in screen and f"\ncorpus={short[1]} " in screen
    assert f"| trained | on {short[0]} | on {short[1]} |" in section(text, "Trained on, evaluated on")
    assert f"| corpus={short[1]}, bits/byte | " in section(text, "Differences from the baseline")
    assert f"| {short[1]}/last_word | acc | 200 | " in section(text, "Task by task")
    assert f"| Github, of {short[0]} | " in section(text, "Loss by domain")
    assert f"{short[0]}/copy_inside: left out" in section(text, "What does not match")
    differs = section(text, "What differs")  # the one table that says which corpus that is
    assert f"| corpus={short[0]} | {corpora[0]} |" in differs and f"| corpus={short[1]} | {corpora[1]} |" in differs
    fixed = section(text, "Held fixed")
    for file in FILES:
        content = (tmp_path / "out" / file).read_text()
        parts = [differs, fixed] if file == "report.md" else []
        for table in re.findall(r"<table>.*?</table>", content, re.S) if file == "report.html" else []:
            parts += [table] * ("in all runs" in table or "data.corpus" in table)
        for part in parts:
            content = content.replace(part, "")
        assert str(Path(ONE).parent) not in content, file
    page = (tmp_path / "out" / "report.html").read_text()
    figures = dict(re.findall(r'(?s)<figure><svg [^>]*aria-label="([^"]*)">(.*?)</svg>(?:<figcap|</figure)', page))
    drawn = figures["Training loss against tokens"]
    assert all(f">corpus={name}</text>" in drawn for name in short)  # the legend
    heat = figures["Bits per byte: trained (rows), held-out text (columns)"]
    assert all(f">on {name}</text>" in heat and f">corpus={name}</text>" in heat for name in short)


def test_runs_on_corpora_by_path_have_their_short_names_without_a_study_too(tmp_path):
    study = by_path(tmp_path / "runs", ONE, OTHER)
    for seed in study.seeds:
        change(study.cell(study.arms[1], seed).dir / "run.json", "config", "train", "tokens", to=2**21)
    one = parse_request([f"RUNS={study.root}"]).study
    assert report(one, tmp_path / "out").splitlines()[1].startswith("b/web.jsonl (baseline) ")
    places = section((tmp_path / "out" / "report.md").read_text(), "Places")
    assert "| trained on | 1.05M | 2.1M |" in places and "| b/web.jsonl, 2 seeds | - | " in places
