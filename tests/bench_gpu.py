"""Measures training speed on one GPU: `make bench-gpu`. The work can be divided over calls that end within a limit.

    make bench-gpu ARGS="--check"                                   does the GPU compute right? (bench_gpu_check.py)
    make bench-gpu ARGS="--positions rotary --how engine"           one slice of the table
    make bench-gpu ARGS="--precision fp8 --micro-batch 16"
    make bench-gpu ARGS="--profile --positions rotary"              where one step's time goes, kernel by kernel

Each variant is trained at the requested size twice: through the engine (launch/engine.py, DeepSpeed), and in a plain
torch loop with fp32 masters. A row has tokens per second, model FLOPs utilisation (FLOPs by model/count.py, over the
GPU's dense bf16 peak, in fp8 too), memory, the estimate of memory by model/memory.py, and seconds of compilation, which
do not count as training.

Each row runs in a process of its own, and is appended to --results (JSON Lines) when it ends. A killed call thus loses
one row at most, and rows in the file are not measured again. With --limit, a row is begun only if the longest row so
far would still end in time. Set TORCHINDUCTOR_CACHE_DIR to keep compiled code between calls.

Before rows are timed, their positions and precisions are checked as with --check, unless the results file says that
they passed on this GPU. A wrong result ends the program with exit code 1, except with --unchecked. Without a GPU the
exit code is 2. --rehearse does the same on a CPU, at the size nano unless --size is given; its numbers mean nothing.
"""

import argparse
import datetime
import functools
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ablations.config import ConfigError, resolve
from ablations.plan.hardware import gpu_of_device
from launch import attention_kernel, deepspeed_setup, engine, preflight, run_model
from model import attention, count
from model.fp8 import fp8_weight_copies
from model.gpt import GPT, prepare_to_compile
from model.memory import estimate_memory
from model.objective import Batch
from tests.bench_gpu_check import POSITIONS, Compare, cases, lacks_fp8

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
DESCRIBES = (
    "size",
    "position",
    "precision",
    "loop",
    "micro_batch",
    "accumulate",
    "compile",
    "device",
    "torch",
)  # the entries by which rows are told apart


def main() -> int:
    args = arguments()
    if not torch.cuda.is_available() and not args.rehearse:
        print("error: make bench-gpu needs an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 2
    if args.row:
        trace = args.results.with_suffix(".trace.json.gz") if args.profile else None
        print(json.dumps(measure(json.loads(args.row), args.steps, trace)))
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if "fp8" in args.precision:
            preflight.check_fp8(resolve([("train.precision", "fp8")]))
            if missing := lacks_fp8(device):
                raise ConfigError(missing)
    except ConfigError as error:
        print(f"without fp8: {error}", flush=True)
        args.precision.remove("fp8")
    wrong = check(args, device)
    if args.check or (wrong and not args.unchecked):
        return 1 if wrong else 0
    return 0 if table(args, wrong) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size")
    parser.add_argument("--check", action="store_true", help="only compare with the reference")
    parser.add_argument(
        "--unchecked", action="store_true", help="time what the check finds wrong, too; the rows name the cases"
    )
    parser.add_argument("--part", default="1/1", help="of the check, such as 2/4: several processes share the cases")
    parser.add_argument("--positions", nargs="+", default=list(POSITIONS), choices=POSITIONS)
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8"], choices=["bf16", "fp8"])
    parser.add_argument("--how", nargs="+", default=["engine", "bare"], choices=["engine", "bare"])
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument(
        "--accumulate", type=int, default=4, help="micro-batches per optimizer step; 4 of 16: what 8 GPUs have of 512"
    )
    parser.add_argument(
        "--compile",
        nargs="+",
        default=["auto"],
        choices=["auto", "never", "reduce-overhead"],
        help="layout.compile of the engine's rows; reduce-overhead (CUDA graphs) is for small sizes",
    )
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps that are timed, after two that are not")
    parser.add_argument(
        "--profile", action="store_true", help="print a step's kernels by their time; a trace goes beside --results"
    )
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds that this call may take")
    parser.add_argument("--results", type=Path, default=Path("runs/bench-gpu.jsonl"), help="appended to")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.size = args.size or ("nano" if args.rehearse else "1b3")
    args.part, args.parts = map(int, args.part.split("/"))
    return args


# ------------------------------------------------------------------------------------------------ the check


def check(args: argparse.Namespace, device: str) -> list[str]:
    """Make the requested comparisons of tests/bench_gpu_check.py, unless the results file has their results; print and
    record the result of each. Returns the names of the comparisons in which `device` differs from the reference."""
    faults: dict[str, list[str] | None] = {
        row["case"]: row["faults"]
        for row in results(args.results)
        if "case" in row and (row["device"], row["torch"]) == (name(), torch.__version__)
    }
    compare = cases(device, args.positions, "fp8" in args.precision, args.check)
    compare = dict(list(compare.items())[args.part - 1 :: args.parts])
    for case in sorted(compare, key=faults.__contains__):  # known ones last: a fault may end this process again
        if case not in faults or (faults[case] and not args.unchecked):
            began = time.monotonic()
            faults[case] = compared(compare[case])
            row = {"case": case, "faults": faults[case], "device": name(), "torch": torch.__version__}
            append(args.results, row | {"seconds": time.monotonic() - began})
        verdict = "torch has none for this device and shape" if faults[case] is None else "equals the reference"
        print(f"check: {case}: {'; '.join(faults[case] or ()) or verdict}", flush=True)
        if faults[case] and not device_answers():
            print("check: the GPU takes no more work from this process: give the same command again", flush=True)
            break
    return [case for case in compare if faults.get(case)]


def compared(compare: Compare) -> list[str] | None:
    """The faults that `compare` finds, as sentences, or the error that it raises; None where it compares nothing."""
    torch.compiler.reset()  # otherwise the ninth shape of a function would run without being compiled
    try:
        return compare()
    except Exception as error:  # any error of a kernel, a driver or a compiler
        traceback.print_exc()
        return [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"]


def device_answers() -> bool:
    """Whether the GPU still accepts work from this process; after some errors it does not."""
    try:
        wait()
    except RuntimeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ the table


def table(args: argparse.Namespace, wrong: list[str]) -> bool:
    """Measure the requested rows that the results file lacks, and print all requested rows. Returns whether all were
    measured. `wrong`: the names of failed comparisons, which are recorded in new rows."""
    print(
        f"{args.size} on one {name()}, torch {torch.__version__}\n"
        "| position | precision | loop | micro-batch | tokens/s | MFU | GB | of the estimate | compilation, s |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    began, longest, complete = time.monotonic(), 0.0, True
    for wanted in rows(args):
        row = next((r for r in results(args.results) if all(r.get(key) == wanted[key] for key in DESCRIBES)), None)
        if row is None or args.profile:
            if time.monotonic() - began + longest > args.limit:
                print(f"no time for {', '.join(str(wanted[key]) for key in DESCRIBES[1:5])}", flush=True)
                complete = False
                continue
            start = time.monotonic()
            row = wanted | run_row(wanted, args) | ({"wrong": wrong} if wrong else {})
            longest = max(longest, time.monotonic() - start)
            append(args.results, row)
        complete &= "failed" not in row
        print(line(row), flush=True)
    compare_speeds(args)
    return complete


def rows(args: argparse.Namespace) -> list[Row]:
    """The rows to measure, the most valuable first, each {entry of DESCRIBES: value}. In fp8 there is one position
    only.
    """
    return [
        {
            "size": args.size,
            "position": pos,
            "precision": precision,
            "loop": how,
            "micro_batch": micro,
            "accumulate": args.accumulate,
            "compile": mode,
            "device": name(),
            "torch": torch.__version__,
        }
        for precision in args.precision
        for how in args.how
        for pos in sorted(args.positions, key=lambda p: p != "rotary")
        for micro in args.micro_batch
        for mode in args.compile
        if (mode == "auto" or how == "engine")
        and (precision != "fp8" or pos == ("rotary" if "rotary" in args.positions else args.positions[0]))
    ]


def run_row(wanted: Row, args: argparse.Namespace) -> Row:
    """Call `measure` in a process of its own. Returns its result, or {"failed": the last line of its errors}, for
    example where memory is not sufficient."""
    command = [sys.executable, "-m", "tests.bench_gpu", "--row", json.dumps(wanted), "--steps", str(args.steps)]
    command += ["--results", str(args.results.absolute())]
    command += ["--rehearse"] * args.rehearse + ["--profile"] * args.profile
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if args.profile:
        print(done.stdout, flush=True)
    if done.returncode:
        return {"failed": ([text for text in done.stderr.splitlines() if text.strip()] or ["it ended"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(row: Row) -> str:
    how = row["loop"] + ("" if row["compile"] == "auto" else f", {row['compile']}")
    first = f"| {row['position']} | {row['precision']} | {how} | {row['micro_batch']} "
    if "failed" in row:
        return f"{first}| {row['failed']} | | | | |"
    rate = f"{row['mfu']:.1%}" if row["mfu"] else f"{row['flops_per_second'] / 1e12:.3g} TFLOP/s"
    share = row["gigabytes"] / row["estimated_gigabytes"]
    speed, memory, compiling = row["tokens_per_second"], row["gigabytes"], row["compile_seconds"]
    return f"{first}| {speed:,.0f} | {rate} | {memory:.1f} | {share:.2f} | {compiling:.0f} |"


def compare_speeds(args: argparse.Namespace) -> None:
    """Print the ratios of speeds for which docs/gpu.md sets limits. Each of the two speeds is the best over the
    micro-batches at which both were measured."""
    speeds: dict[tuple[str, str, str], dict[tuple[int, int], float]] = {}  # {row: {(micro-batch, number): tokens/s}}
    for row in results(args.results):
        if row.get("size") == args.size and row.get("device") == name() and "tokens_per_second" in row:
            if row.get("compile", "auto") != "auto":
                continue
            key = (row["position"], row["precision"], row["loop"])
            speeds.setdefault(key, {})[row["micro_batch"], row["accumulate"]] = row["tokens_per_second"]
    pairs = [(("alibi", "bf16", "engine"), (other, "bf16", "engine")) for other in ("rotary", "none")]
    pairs += [((pos, "bf16", "engine"), (pos, "bf16", "bare")) for pos in POSITIONS]
    pairs += [((pos, "fp8", "engine"), (pos, "bf16", "engine")) for pos in POSITIONS]
    for one, other in pairs:
        if shared := speeds.get(one, {}).keys() & speeds.get(other, {}).keys():
            ours, theirs = (max(speeds[key][batch] for batch in shared) for key in (one, other))
            print(f"{' '.join(one)} has {ours / theirs:.3f} of the speed of {' '.join(other)}")


# ------------------------------------------------------------------------------------------------ one row


def bare(model: GPT, words: list[tuple[str, Any]], data: Batch) -> tuple[Callable[[], object], float]:
    """Make a step of a plain torch loop that does the engine's work: with bf16 weights, fp32 masters, AdamW, clipping
    and the same kernels. Returns (the step, seconds of compiling). `words`: settings of the run; `data`: the batch."""
    run, device = resolve(words), "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, torch.bfloat16)
    weights: list[torch.Tensor] = list(model.parameters())
    micros = data.to(torch.device(device)).split(run.layout.micro_batch)
    masters = [p.detach().float().requires_grad_() for p in weights]
    optimizer = torch.optim.AdamW(masters, lr=run.train.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    prepare_to_compile()
    if device == "cuda":  # as Engine does
        attention_kernel.choose_kernel(model, run.layout.micro_batch)
        attention.prepare_block_mask(model.objective, run.model.seq, model.embed.weight.device)
    loss = torch.compile(model.loss, dynamic=False) if device == "cuda" else model.loss
    began = time.perf_counter()
    with fp8_weight_copies(model):
        torch.autograd.grad(loss(micros[0]), weights)
    wait()
    seconds = time.perf_counter() - began

    def accumulate(micro: Batch) -> None:
        (loss(micro) / len(micros)).backward()
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if masters[0].grad is None:
            for master, grad in zip(masters, grads, strict=True):
                master.grad = grad.float()
        else:
            torch._foreach_add_([master.grad for master in masters], [grad.float() for grad in grads])
        for weight in weights:
            weight.grad = None

    def step() -> None:
        with fp8_weight_copies(model):
            for micro in micros:
                accumulate(micro)
        torch.nn.utils.clip_grad_norm_(masters, run.train.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)

    return step, seconds


def measure(wanted: Row, steps: int, trace: Path | None) -> Row:
    """Measure a row: tokens per second in the median of `steps` steps, memory at its peak and by estimate, seconds of
    compilation. `wanted`: {entry of DESCRIBES: value}; `trace`: a file for the profile of one more step, which is also
    printed; None: no profile. Returns the row's other entries."""
    micro, batch = wanted["micro_batch"], wanted["micro_batch"] * wanted["accumulate"]
    words = [
        ("size", wanted["size"]),
        ("model.pos", wanted["position"]),
        ("train.precision", wanted["precision"]),
        ("train.batch", batch),
        ("train.tokens", 10**12),
        ("layout.micro_batch", micro),
        ("layout.compile", wanted["compile"]),
    ]
    run = resolve(words)
    rows = torch.randint(run.model.vocab, (batch, run.model.seq + 1), generator=torch.Generator().manual_seed(1))
    deepspeed_setup.initialise_process(run)
    step: Callable[[], object]
    model = run_model.build_model(run)
    data = model.objective.batch(rows)
    built = engine.build_engine(model, run, 1) if wanted["loop"] == "engine" else None
    if built:
        step, compiling = functools.partial(built.launch, data, run.train.lr), built.compile_seconds
        if failed := [p.detail for p in built.proofs if not p.passed]:  # as in training
            raise RuntimeError(f"the compiled graph is not the model: {failed[0]}")
    else:
        step, compiling = bare(model, words, data)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()  # compiling ends with a proof that holds gradients twice
    seconds = []
    for i in range(2 + steps):
        wait()
        began = time.perf_counter()
        step()
        wait()
        seconds += [time.perf_counter() - began] if i >= 2 else []
    if trace:
        print_profile(step, trace)
    speed = batch * run.model.seq / statistics.median(seconds)
    flops = speed * count.flops_per_token(run.model)
    gpu = gpu_of_device(name())
    guess = estimate_memory(run.model, micro, run.train.precision, run.layout.zero, 1, wanted["accumulate"], cuda, 1)
    return {
        "tokens_per_second": speed,
        "step_seconds": seconds,
        "flops_per_second": flops,
        "mfu": flops / gpu.peak if gpu and gpu.bf16 else None,
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if cuda else guess["total"] / 1e9,
        "estimated_gigabytes": guess["total"] / 1e9,
        "compile_seconds": compiling,
        "execution": built.execution if built else None,
        "date": datetime.date.today().isoformat(),
    }


def print_profile(step: Callable[[], object], path: Path) -> None:
    """Profile one step. Print its seconds, the seconds in kernels, and the kernels that take most of the time. `path`:
    a file for the trace, which Perfetto and chrome://tracing show."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as trace:
        step()
        wait()
    seconds = time.perf_counter() - began
    trace.export_chrome_trace(str(path))
    kernels = sorted(trace.key_averages(), key=lambda k: -(k.self_device_time_total if cuda else k.self_cpu_time_total))
    times = {k.key: (k.self_device_time_total if cuda else k.self_cpu_time_total) / 1e6 for k in kernels}
    print(f"one step under the profiler: {seconds:.3f} s, of them {sum(times.values()):.3f} s in kernels")
    for kernel, busy in list(times.items())[:25]:
        print(f"{busy / seconds:7.1%}  {kernel[:110]}")


def wait() -> None:
    """Wait until the GPU has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def results(path: Path) -> list[Row]:
    """The rows in the results file; a half-written line of a killed call is skipped."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
