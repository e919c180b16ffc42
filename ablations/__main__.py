"""megahour: controlled ablations of decoder language models.

A study is one question; a run is the baseline plus one line; nothing else differs, and the code proves it.
"""

import argparse
import json
import subprocess
import sys
import time

from ablations.config import ConfigError, has_gpu
from ablations.study import FACTORS, HELP, ROOT, SETTINGS, Study, from_args, human, state

COMMANDS = {
    "plan": "list the runs of a study and what they cost; creates nothing",
    "run": "train and evaluate what is not finished, then report",
    "status": "where every run of a study stands",
    "report": "write the report of a study from its run directories",
    "show": "the complete configuration of every arm, and the line that makes it",
}


def main(argv: list[str]) -> int:
    variables = "\n".join(
        f"  {name:8} {(FACTORS[name][0] if name in FACTORS else SETTINGS.get(name, '')):13} {text}"
        for name, text in HELP.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m ablations",
        description=__doc__,
        epilog=f"NAME=VALUE:\n{variables}\n\nexample: python -m ablations run POS=alibi SEEDS=3 TOKENS=2M",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, text in COMMANDS.items():
        command = sub.add_parser(name, help=text, description=text, epilog=parser.epilog,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        command.add_argument("words", nargs="*", metavar="NAME=VALUE", help="the study; see below")
    args = parser.parse_args(argv)
    try:
        study = from_args(args.words)
        return {"plan": plan, "run": run, "status": status, "report": report, "show": show}[args.command](study)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130


def plan(study: Study) -> int:
    from model.count import flops_per_token, parameters
    from model.memory import estimate

    print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}\n")
    print(f"{'cell':>4}  {'arm':28} {'seed':>4}  {'parameters':>12}  {'tokens':>8}  {'FLOPs':>8}  directory")
    total = 0.0
    for i, cell in enumerate(study.cells):
        cell.check_recorded()
        run = cell.run
        tokens = run.steps * run.train.batch * run.model.seq
        flops = tokens * flops_per_token(run.model)
        total += flops
        print(
            f"{i:4}  {cell.arm + (' (baseline)' if not cell.delta else ''):28} {cell.seed:4}  "
            f"{parameters(run.model):12,}  {human(tokens):>8}  {flops:8.1e}  {cell.dir}  [{state(cell)['state']}]"
        )
    base, layout = study.base, study.base.layout
    ranks = max(layout.processes, 1)
    accumulate = base.train.batch // (layout.micro_batch * ranks)
    shape = (layout.micro_batch, base.train.precision, layout.zero, ranks, accumulate, has_gpu())
    memory = max(estimate(cell.run.model, *shape)["total"] for cell in study.cells)
    print(
        f"\n{len(study.cells)} runs of {base.steps} steps, {total:.2e} FLOPs in all, {base.train.precision}, "
        f"size {base.size}; at most {memory / 1e9:.3g} GB of tensors on each rank, by estimate"
    )
    return 0


def run(study: Study) -> int:
    from ablations.execute import run as execute

    began = time.monotonic()
    print(f"{study.title}\n  question  {study.question}\n  expected  {study.expect}\n", flush=True)
    failures = execute(study)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    report(study)
    seconds = time.monotonic() - began
    print(f"\n{int(seconds) // 60} min {int(seconds) % 60} s. Report: ablations/records/{study.name}/report.md")
    return 1 if failures else 0


def status(study: Study) -> int:
    print(study.title)
    for cell in study.cells:
        s = state(cell)
        words = []
        if "step" in s:
            speed = human(s["tokens_per_second"])
            words += [f"step {s['step']}/{cell.run.steps}  loss {s['loss']:.3f}  {speed} tokens/s"]
        if "bits_per_byte" in s:
            words += [f"{s['bits_per_byte']:.3f} bits/byte"]
        words += [s["why"]] if "why" in s else []
        print(f"  {cell.name:32} {s['state']:22} {'  '.join(words)}")
    return 0


def report(study: Study) -> int:
    return subprocess.run([sys.executable, "-m", "eval.report", *study.words], cwd=ROOT).returncode


def show(study: Study) -> int:
    base = study.base.flat()
    print(json.dumps(base, indent=2))
    for arm in study.arms:
        cell = study.cell(arm, study.seeds[0])
        print(f"{arm}: {json.dumps(cell.delta) if cell.delta else 'the baseline'}  fingerprint {cell.run.fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
