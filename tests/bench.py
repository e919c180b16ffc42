"""Training speed against peers on the same work: `make bench ARGS="--nanogpt path/to/nanoGPT"`.

Every row runs in a process of its own (what else a process holds moves a row by up to 40%), and all take a few steps in
turn, round by round, because machines are noisy: read the ratios, which are medians over rounds. Each peer is tried
eager and compiled, with torch's fused attention and with the plain one where it has both, in bf16 under autocast and
with bf16 weights and fp32 masters; the fastest of these settings then with our malloc setting and with glibc's own, and
the faster of the two goes on. "minimal" is a GPT of some 45 lines (tests/bench_minimal.py). A table has
one precision. One thread is timed in CPU time, more in wall time. MB is the most that was allocated for tensors, from
the building on. transformers is installed; litgpt and x-transformers join where Python finds them (PYTHONPATH).
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
KEPT = ", memory kept"  # ends a setting in which freed memory stays with the process, as it does in our runs
# these have a plain attention too, which on a CPU may be the faster one
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
    name: str
    setting: str
    process: Any
    pipe: Connection
    mb: float
    seconds: list[float]
    faults: list[float]


def start(name: str, setting: str, words: list[tuple[str, Any]], options: dict[str, Any]) -> Row | None:
    """A process that has built the row and taken its first steps; None, with a line on stderr, where it cannot."""
    from bench_rows import serve

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, name, setting, words, options), daemon=True
    )
    process.start()
    there.close()
    try:
        told = here.recv()
    except EOFError:
        told = {"error": "its process ended"}
    if "error" in told:
        print(f"without {name} ({setting}): {told['error']}", file=sys.stderr, flush=True)
        process.join()
        return None
    print(f"{name} ({setting}): ready in {told['start']:.0f} s", file=sys.stderr, flush=True)
    return Row(name, setting, process, here, told["mb"], [], [])


def stop(row: Row) -> None:
    row.pipe.send(0)
    row.process.join()


def rounds(rows: list[Row], number: int, steps: int) -> None:
    """Every row in turn, from another one on in each round."""
    for i in range(number):
        for row in rows[i % len(rows) :] + rows[: i % len(rows)]:
            row.pipe.send(steps)
            seconds, faults = row.pipe.recv()
            row.seconds.append(seconds)
            row.faults.append(faults)


def fastest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: statistics.median(row.seconds))


def ratio(a: Row, b: Row) -> float:
    """How many times as fast as `b` is `a`."""
    return statistics.median(y / x for x, y in zip(a.seconds, b.seconds, strict=True))


def positions(row: Row) -> str:
    return row.name.split(", ")[1].lower()


def fastest_of(
    name: str, settings: list[str], words: list[tuple[str, Any]], options: dict[str, Any], steps: int
) -> Row | None:
    """The row in the fastest of its settings, by three rounds; None where it runs in none of them."""
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
    """Start everything, choose each peer's setting, take the rounds."""
    options = {"nanogpt": args.nanogpt}
    base = [
        ("size", args.size),
        ("train.batch", args.batch),
        ("layout.micro_batch", args.batch),
        ("layout.threads", args.threads),
        ("train.precision", precision),
    ]

    def wanted(name: str) -> bool:
        return not args.only or any(word in name for word in args.only)

    theirs = [*base, *AS_BERT] if args.mlm else base
    ours: dict[str, list[tuple[str, Any]]] = {pos: [*base, ("model.pos", pos)] for pos in OURS}
    if args.mlm:
        ours = {"learned": [*base, *AS_BERT], "scaled-sinusoidal": [*base, *AS_CRAMMED]}
    rows: list[Row | None] = []
    for name in filter(wanted, BERTS if args.mlm else PEERS):
        settings = [setting for setting in SETTINGS[precision] if args.setting in setting]
        settings += [f"{setting}, plain" for setting in settings if name.startswith(FUSED)]
        if row := fastest_of(name, [setting + KEPT for setting in settings], theirs, options, args.steps):
            stop(row)
            rows.append(fastest_of(name, [row.setting, row.setting.removesuffix(KEPT)], theirs, options, args.steps))
    for library in ("torch.mm", "oneDNN"):
        rows.append(start(f"floor, {library}", "", theirs, options))
    for pos, words in ours.items():
        if wanted(f"ours, {pos}"):
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
        slow, lean = min(ours, key=lambda row: ratio(row, fastest(peers))), min(row.mb for row in peers)
        print(
            f"\nslowest of ours: {slow.name}, {slow.setting}: {ratio(slow, fastest(peers)):.2f} x the best peer "
            f"({fastest(peers).name}, {fastest(peers).setting}); memory: ours at most "
            f"{max(row.mb for row in ours):.0f} MB, the leanest peer {lean:.0f}"
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
