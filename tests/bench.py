"""Compares our training speed with that of peers on the same work: `make bench ARGS="--nanogpt path/to/nanoGPT"`.

A row of a table is a model in one setting. Each row runs in a process of its own, since other objects in its process
change its speed by up to 40%. The rows take a few steps in turn, round by round, because machines are noisy: read the
ratios, which are medians over rounds.

Each peer runs in its fastest setting, found in two trials. The first: eager or compiled; torch's fused attention or the
plain one, where the peer has both; in bf16 under autocast, or with bf16 weights and fp32 masters. The second: our
malloc setting or glibc's own.

A table has one precision. With one thread CPU time is measured, with more wall time. MB is the peak of memory
allocated for tensors, building the model included. The peer "minimal" is a GPT of some 45 lines
(tests/bench_minimal.py). transformers is installed; litgpt and x-transformers are compared where Python finds them
(PYTHONPATH).
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

OURS = ("none", "learned", "rotary", "alibi", "sinusoidal", "scaled-sinusoidal")
PEERS = (
    "minimal, learned",
    "nanoGPT, learned",
    "litgpt, rotary",
    "GPT-2, learned",
    "GPT-NeoX, rotary",
    "BLOOM, ALiBi",
    "Llama, rotary, SwiGLU",
    "x-transformers, learned",
    "x-transformers, rotary",
    "x-transformers, ALiBi",
)
SETTINGS = {
    "fp32": ("eager", "compiled"),
    "bf16": ("eager autocast", "compiled autocast", "eager masters", "compiled masters"),
}
KEPT = ", memory kept"  # the end of a setting's name where freed memory stays with the process, as in our runs
# names of peers with a fused and a plain attention begin so; on a CPU the plain one may be faster
FUSED = ("GPT", "Llama", "x-transformers", "BERT")

# `--mlm`: a small sibling of Cramming's shape (sequences of 128, heads of 64 columns, a vocabulary of 32 x the width, a
# quarter of the tokens masked), as BERT and as Cramming have it, with as many parameters in the MLPs.
SIBLING: list[tuple[str, Any]] = [
    ("model.objective", "mlm"),
    ("model.mask_rate", 0.25),
    ("model.layers", 4),
    ("model.hidden", 256),
    ("model.heads", 4),
    ("model.seq", 128),
    ("model.vocab", 8192),
    ("model.sumnorm", True),
]
AS_BERT: list[tuple[str, Any]] = [
    *SIBLING,
    ("model.pos", "learned"),
    ("model.block", "post-ln"),
    ("model.ffn_width", 768),
    ("model.head_transform", "bert"),
    ("model.output_bias", True),
]
AS_CRAMMED: list[tuple[str, Any]] = [
    *SIBLING,
    ("model.pos", "scaled-sinusoidal"),
    ("model.act", "geglu"),
    ("model.ffn_width", 512),
    ("model.qkv_bias", False),
    ("model.linear_bias", False),
]
BERTS = ("BERT, learned", "BERT, masked only")


class Row(NamedTuple):
    """A row of the table, and the process that runs it."""

    name: str  # such as "ours, rotary"
    setting: str  # such as "compiled masters"
    process: Any
    pipe: Connection  # to the process
    mb: float  # peak memory of tensors
    seconds: list[float]  # seconds of a step, for each round
    faults: list[float]  # page faults of a step, for each round


def start(name: str, setting: str, words: list[tuple[str, Any]], options: dict[str, Any]) -> Row | None:
    """Start the process of a row, which builds the model and takes its first steps. Returns None where the process
    fails; a line on stderr says why.

    Args:
        name: the row's name.
        setting: the row's setting, "" for a row without one.
        words: settings of the run, [(key, value)].
        options: {"nanogpt": a checkout of nanoGPT, or None}.
    """
    from bench_rows import serve

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, name, setting, words, options), daemon=True
    )
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = {"error": "its process ended"}
    if "error" in answer:
        print(f"without {name} ({setting}): {answer['error']}", file=sys.stderr, flush=True)
        process.join()
        return None
    print(f"{name} ({setting}): ready in {answer['start']:.0f} s", file=sys.stderr, flush=True)
    return Row(name, setting, process, here, answer["mb"], [], [])


def stop(row: Row) -> None:
    row.pipe.send(0)
    row.process.join()


def rounds(rows: list[Row], number: int, steps: int) -> None:
    """Measure a `number` of rounds: in each round every row takes `steps` steps in turn. Each round begins with another
    row."""
    for i in range(number):
        for row in rows[i % len(rows) :] + rows[: i % len(rows)]:
            row.pipe.send(steps)
            seconds, faults = row.pipe.recv()
            row.seconds.append(seconds)
            row.faults.append(faults)


def fastest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: statistics.median(row.seconds))


def ratio(a: Row, b: Row) -> float:
    """The speed of `a` divided by that of `b`, as the median over rounds."""
    return statistics.median(y / x for x, y in zip(a.seconds, b.seconds, strict=True))


def positions(row: Row) -> str:
    return row.name.split(", ")[1].lower()


def fastest_of(
    name: str, settings: list[str], words: list[tuple[str, Any]], options: dict[str, Any], steps: int
) -> Row | None:
    """Start a row in each of `settings`, and stop all but the fastest in three rounds. Returns the fastest; None where
    the row runs in none of the settings. Other arguments as for `start` and `rounds`."""
    started = [start(name, setting, words, options) for setting in settings]
    rows = [row for row in started if row]
    if not rows:
        return None
    rounds(rows, 3, steps)
    best = fastest(rows)
    for row in rows:
        if row is not best:
            stop(row)
    return best


def compare(precision: str, args: argparse.Namespace) -> list[Row]:
    """Choose each peer's setting, start all rows of a table, and measure the rounds. Returns the measured rows."""
    options = {"nanogpt": args.nanogpt}
    base = [
        ("size", args.size),
        ("train.batch", args.batch),
        ("layout.micro_batch", args.batch),
        ("layout.threads", args.threads),
        ("train.precision", precision),
    ]

    def is_asked_for(name: str) -> bool:
        return not args.only or any(word in name for word in args.only)

    theirs = [*base, *AS_BERT] if args.mlm else base
    ours: dict[str, list[tuple[str, Any]]] = {pos: [*base, ("model.pos", pos)] for pos in OURS}
    if args.mlm:
        ours = {"learned": [*base, *AS_BERT], "scaled-sinusoidal": [*base, *AS_CRAMMED]}
    rows: list[Row | None] = []
    for name in filter(is_asked_for, BERTS if args.mlm else PEERS):
        settings = [setting for setting in SETTINGS[precision] if args.setting in setting]
        settings += [f"{setting}, plain" for setting in settings if name.startswith(FUSED)]
        if row := fastest_of(name, [setting + KEPT for setting in settings], theirs, options, args.steps):
            stop(row)
            rows.append(fastest_of(name, [row.setting, row.setting.removesuffix(KEPT)], theirs, options, args.steps))
    for library in ("torch.mm", "oneDNN"):
        rows.append(start(f"floor, {library}", "", theirs, options))
    for pos, words in ours.items():
        if is_asked_for(f"ours, {pos}"):
            rows.append(start(f"ours, {pos}", "eager", words, options))
            if args.bare:
                rows.append(start(f"bare, {pos}", "eager masters" if precision == "bf16" else "eager", words, options))
            if args.compiled:
                rows.append(start(f"ours, {pos}", "compiled", [*words, ("layout.compile", "always")], options))
    started = [row for row in rows if row]
    for row in started:
        row.seconds.clear()
        row.faults.clear()
    rounds(started, args.rounds, args.steps)
    for row in started:
        stop(row)
    return started


def table(precision: str, rows: list[Row], args: argparse.Namespace) -> None:
    """Print the table of measured rows in Markdown, and a sentence about our slowest row."""
    from ablations.config import resolve
    from model.count import flops_per_token

    words = [("size", args.size), ("train.batch", args.batch), ("layout.micro_batch", args.batch)]
    model = resolve([*words, *(AS_BERT if args.mlm else [])]).model
    tokens, flops = args.batch * model.seq, flops_per_token(model)
    peers = [row for row in rows if not row.name.startswith(("ours", "bare", "floor"))]
    lowest = fastest([row for row in rows if row.name.startswith("floor")])
    unit = "CPU second" if args.threads == 1 else "second"
    head = f"{'mlm' if args.mlm else args.size}, {precision}, threads: {args.threads}, {args.batch} x {model.seq}"
    print(
        f"\n| {head} | setting | tokens per {unit} | GFLOP/s | of floor | × best peer | × best of its positions | "
        "MB | page faults a step |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in sorted(rows, key=lambda row: statistics.median(row.seconds)):
        speed = tokens / statistics.median(row.seconds)
        against, same = "–", [peer for peer in peers if positions(peer) == positions(row)]
        if peers and not row.name.startswith("floor"):
            against = f"{ratio(row, fastest(peers)):.2f}"
        against += f" | {ratio(row, fastest(same)):.2f}" if same else " | –"
        print(
            f"| {row.name} | {row.setting} | {speed:,.0f} | {speed * flops / 1e9:.0f} | {ratio(row, lowest):.2f} "
            f"| {against} | {row.mb:.0f} | {statistics.median(row.faults):,.0f} |"
        )
    ours = [row for row in rows if row.name.startswith("ours")]
    if peers and ours:
        best = fastest(peers)
        slowest = min(ours, key=lambda row: ratio(row, best))
        print(
            f"\nslowest of ours: {slowest.name}, {slowest.setting}: {ratio(slowest, best):.2f} x the best peer "
            f"({best.name}, {best.setting}); memory: ours at most "
            f"{max(row.mb for row in ours):.0f} MB, the leanest peer {min(row.mb for row in peers):.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--mlm", action="store_true", help="masked language models of one small shape, against BERT")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="in each round")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name holds one of these")
    parser.add_argument("--setting", default="", help="peers' settings that hold this text: eager, compiled, masters")
    parser.add_argument("--compiled", action="store_true", help="ours also with layout.compile=always")
    parser.add_argument("--bare", action="store_true", help="our model also without DeepSpeed, in the peers' loop")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the rows' processes
    for precision in args.precision:
        table(precision, compare(precision, args), args)


if __name__ == "__main__":
    main()
