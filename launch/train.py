"""Trains one cell of a study: `python -m launch.train --cell 3 POS=alibi`.

Run it again to continue: it picks up the last whole checkpoint, and on a CPU the finished run equals an undisturbed
one bit for bit. Under torchrun or Slurm the same command is one rank of many.
"""

import argparse
import errno
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations import rundir, safe_files
from ablations.budget import ClockBudget, learning_rate
from ablations.config import ConfigError, Run, spread
from ablations.plan.reliability import save_interval
from ablations.rundir import Exit
from ablations.study import Cell, from_args
from launch import manifest
from launch.clock import Clock
from launch.watch import Stop, Watch, event, stop_file

if TYPE_CHECKING:
    from launch.checkpoint import Checkpoints
    from launch.engine import Engine, Pending


@dataclass
class Progress:
    """The state of the training loop, which a checkpoint holds beside the weights and the optimizer."""

    step: int = 0
    samples: int = 0  # trained; those that were left out are not counted
    seconds: float = 0.0  # of training, in all launches, on the clock of the first rank
    compile_seconds: float = 0.0  # in all launches; counted in `seconds` where the budget is a time
    losses: list[float] = field(default_factory=list)  # since the last line of the log
    recent: list[float] = field(default_factory=list)  # of the last 64 steps, to tell a spike from noise
    skipped: int = 0  # samples that were left out after divergences
    rollbacks: list[dict[str, Any]] = field(default_factory=list)


def train(cell: Cell, out: Path) -> None:
    """Train a run from its first step, or from its last checkpoint, to the end of its budget.

    Raises:
        Stop: training was asked to stop, or a node is unfit; a checkpoint is saved.
        manifest.Failed: the run cannot go on.
    """
    import psutil
    import torch.distributed as dist

    from data.batches import Batches
    from launch import engine as ds
    from launch import preflight
    from launch.checkpoint import Checkpoints
    from launch.log import Log

    rank, world = ds.start(cell.run)
    run = preflight.with_micro_batch(cell.run, world)
    cell = replace(cell, run=spread(run, world // run.layout.tp))
    run, folder = cell.run, cell.dir
    preflight.check_fp8(run)
    preflight.check_memory(run, world)
    hosts = [node.host for node in preflight.check(run, folder, out)]
    data = manifest.prepare_data(run, out / rundir.DATA)
    engine = ds.build(ds.model_of(run), run, world)
    size = run.layout.tp  # ranks that hold a model together see the same samples
    replica, replicas = rank // size, world // size
    # proofs first: a run that is not what it says stops here
    manifest.write(cell, engine, data, out / rundir.DATA, hosts)

    sources = [(s["prefix"], s["weight"]) for s in data["train"]]
    batches = Batches(sources, run.model.seq, run.seed, in_order=run.data.order != "random")
    objective, special = engine.model.objective, manifest.special_tokens(run, data)
    identity = {
        "fingerprint": run.fingerprint,
        "corpus sha256": data["sha256"],
        "tokenizer sha256": data["tokenizer"]["sha256"],
    }
    checkpoints = Checkpoints(safe_files.inside(folder, rundir.CHECKPOINTS), run.layout.keep, run.milestones, identity)
    at = resumed(run, engine.load(checkpoints))
    at.compile_seconds += engine.compile_seconds
    # compiling is part of a budget that is a time
    clock = Clock(at.seconds + (engine.compile_seconds if isinstance(run.budget, ClockBudget) else 0.0))
    log = Log(folder, run, cell.name, at.step) if rank == 0 else None
    with Watch(
        folder, out, None if run.by_clock else run.steps, rank, hosts, run.layout.hang, run.layout.patience
    ) as watch:
        logged = saved = time.perf_counter()
        logged_samples, begun = at.samples, at.step
        behind = reads_a_step_late(engine, run)
        # steps under way: number, samples trained after it, samples of its own
        unread: deque[tuple[int, int, int, Pending]] = deque()
        while not ended(run, at):
            numbers = next_samples(run, at)
            first, last = (numbers.start + at.skipped + r * len(numbers) // replicas for r in (replica, replica + 1))
            mine = range(first, last)  # the numbers of this rank's samples
            lr = learning_rate(run.train, run.budget.share(numbers.stop * run.model.seq, at.seconds))
            noise = (run.seed * 1_000_003 + at.step) * replicas + replica
            late = rank == 0 and time.perf_counter() - saved > pause(run, checkpoints, hosts)
            batch = objective.batch(batches.batch(mine), run.seed, mine, special)
            pending = engine.launch(batch, lr, noise, save=late, leave=bool(watch.stop_reason), clock=clock.read)
            at.step += 1
            at.samples = numbers.stop
            unread.append((at.step, at.samples, len(numbers), pending))
            watch.stepped(at.step)
            if log and at.step == begun + 1:
                started = time.time() - psutil.Process().create_time()
                print(
                    f"first step {started:.1f} s after the start, {engine.compile_seconds:.1f} s of them compiling",
                    flush=True,
                )
            checkpoints.check()

            due = at.step in run.milestones or (run.layout.save_every and at.step % run.layout.save_every == 0)
            # whatever is written down is of steps that are known to be good
            everything = not behind or due or at.step % run.layout.log_every == 0 or ended(run, at)
            save = leave = False
            complaint = ""
            while unread and not complaint and (everything or len(unread) > 1):
                step, samples, size_of_batch, pending = unread.popleft()
                loss, norm, wants_save, wants_leave, at.seconds = pending.read()
                save, leave = save or wants_save, leave or wants_leave
                everything = everything or save or leave
                if complaint := divergence(run, step, at.recent, loss, norm):
                    at.step, at.samples = step, samples
                else:
                    at.losses.append(loss)
                    at.recent = [*at.recent[-63:], loss]
            now = time.perf_counter()
            if complaint:
                unread.clear()
                with watch.storing():
                    at = go_back(cell, engine, checkpoints, at, complaint, size_of_batch)
                if log:
                    log.rewind(at.step)
                logged = saved = time.perf_counter()
                logged_samples = at.samples
                continue
            if at.step % run.layout.log_every == 0 or ended(run, at):
                tokens, busy = at.samples * run.model.seq, engine.busy()
                speed = (at.samples - logged_samples) * run.model.seq / (now - logged)
                if log:
                    log.write(
                        {
                            "step": at.step,
                            "tokens": tokens,
                            "loss": math.fsum(at.losses) / len(at.losses),
                            "lr": engine.lr,
                            "grad_norm": norm if math.isfinite(norm) else None,
                            "tokens_per_second": speed,
                            "seconds": at.seconds,
                            **engine.scaled,
                        }
                    )
                watch.speed(speed, busy)
                logged, logged_samples, at.losses = now, at.samples, []
            if save or leave or due or ended(run, at):
                with watch.storing():
                    if log:
                        log.sync()  # a checkpoint without the lines before it would be a gap in the curve
                    engine.save(checkpoints, at.step, asdict(at))
                saved = time.perf_counter()
            if leave:
                with watch.storing():
                    checkpoints.wait()
                    dist.barrier()  # the first rank to leave ends all others, and a checkpoint needs what each writes
                code = Exit.KILLED if stop_file(out) else Exit.RESUBMIT
                raise Stop(watch.stop_reason or "another rank was asked to stop", code)
        with watch.storing():
            checkpoints.wait()

    engine.write_weights(folder / rundir.WEIGHTS)
    if log:
        log.sync()
        tokens = at.samples * run.model.seq
        done = {"steps": at.step, "tokens": tokens, "seconds": at.seconds, "ranks": world, **engine.scaled}
        if isinstance(run.budget, ClockBudget):
            done |= {"budget_seconds": run.budget.seconds, "compile_seconds": at.compile_seconds}
        rundir.write_done(folder, done)
        log.close()  # W&B may wait long for its server


def resumed(run: Run, state: dict[str, Any] | None) -> Progress:
    """The progress in a checkpoint; that of step 0 where there is none. Checkpoints of older versions do not have the
    number of samples, which is computed for them."""
    at = Progress(**(state or {}))
    if state and "samples" not in state:
        at.samples = run.samples(at.step).start
    return at


def reads_a_step_late(engine: "Engine", run: Run) -> bool:
    """Whether a step's loss is read when the next one is under way, so that a GPU need not wait for the host. Not where
    the clock decides how long to train: it is read after each step."""
    return engine.device.type == "cuda" and not isinstance(run.budget, ClockBudget)


def ended(run: Run, at: Progress) -> bool:
    """Whether the budget is used up. By the clock: the last step is the first that ends after its time."""
    if isinstance(run.budget, ClockBudget):
        return at.seconds >= run.budget.seconds
    return at.step >= run.steps


def next_samples(run: Run, at: Progress) -> range:
    """The numbers of the samples (sequences) of the next step."""
    if not isinstance(run.budget, ClockBudget):
        return run.samples(at.step)
    ramped = run.budget.share(0, at.seconds) / run.train.ramp_share if run.train.ramp else 1.0
    return range(at.samples, at.samples + run.batch_sizes.at(ramped))


def pause(run: Run, checkpoints: "Checkpoints", hosts: list[str]) -> float:
    """Seconds until the next checkpoint, where layout.save_every=0 leaves that to the clock."""
    if run.layout.save_every:
        return math.inf
    if not checkpoints.seconds:
        return 30.0  # the first save measures what one costs
    mtbf = run.layout.mtbf * 3600 / len(set(hosts))
    return max(save_interval(checkpoints.stall, mtbf), 2 * checkpoints.seconds)


def divergence(run: Run, step: int, recent: list[float], loss: float, norm: float) -> str:
    """Why a step counts as a divergence, "" when it does not: the loss or the gradient norm is NaN or infinite, the
    loss is above that of a uniform guess by train.divergence, or above the `recent` losses by train.spike. Gradients
    that overflow in fp16 do not count: so its loss scale is found (see `Engine.launch`)."""
    limit = math.log(run.model.vocab) + run.train.divergence
    overflow = run.train.precision == "fp16" and norm == math.inf
    if not (math.isfinite(loss) and (math.isfinite(norm) or overflow)):
        return f"step {step}: the loss is {loss} and the gradient norm {norm}"
    if loss > limit:
        return f"step {step}: loss {loss:.3f}, above log(vocab) + train.divergence = {limit:.3f}"
    if run.train.spike and len(recent) >= 8 and loss > statistics.median(recent) + run.train.spike:
        return (
            f"step {step}: loss {loss:.3f}, more than train.spike={run.train.spike:g} above the median "
            f"{statistics.median(recent):.3f} of the last {len(recent)} steps"
        )
    return ""


def go_back(
    cell: Cell, engine: "Engine", checkpoints: "Checkpoints", at: Progress, complaint: str, size: int
) -> Progress:
    """After a divergence: load a checkpoint from well before it, and skip the data that led to it (Chowdhery et al.
    2022, section 5.1). The clock of the run does not go back.

    Args:
        size: sequences of the last batch.

    Raises:
        manifest.Diverged: when the configuration does not allow it, or not once more, or there is no such checkpoint.
    """
    train, cure = cell.run.train, "Try a lower train.lr or a longer train.warmup."
    if not train.rollbacks:
        raise manifest.Diverged(f"{complaint}. {cure}")
    if len(at.rollbacks) == train.rollbacks:
        raise manifest.Diverged(f"{complaint}, after going back {train.rollbacks} times. {cure}")
    checkpoints.wait()
    state = engine.load(checkpoints, before=at.step - train.skip + 1)
    if state is None:
        before = f"no checkpoint at least train.skip={train.skip} steps before"
        raise manifest.Diverged(f"{complaint}, and there is {before}. {cure}")
    back = resumed(cell.run, state)
    first = back.samples
    back.skipped = at.skipped + at.samples - first + train.skip * size
    left_out = [first + at.skipped, first + back.skipped]
    back.rollbacks = [*at.rollbacks, {"why": complaint, "back_to": back.step, "samples_left_out": left_out}]
    back.seconds = at.seconds
    manifest.record_rollbacks(cell, back.rollbacks)
    event(cell.dir, at.step, "rollback", f"{complaint}; back to step {back.step}, samples {left_out} left out")
    return back


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock the run directory, while inside: on the first rank, the only process that may write it. Under Slurm, wait
    for a process that still holds the lock to leave.

    The other ranks write nothing here: preflight finds out whether their nodes can, and names those that cannot.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # here long enough for those who only look whether it is locked (ablations/status.py)
    patience, moment = (60, 1.0) if "SLURM_JOB_ID" in os.environ else (10, 0.1)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(rundir.hold(folder))
                break
            except BlockingIOError:
                if patience:
                    patience -= 1
                    time.sleep(moment)
                elif "SLURM_JOB_ID" in os.environ:  # a second job, or the lock of a lost node: not the run's fault
                    raise Stop(f"another process is training {folder}", Exit.RESUBMIT) from None
                else:
                    raise ConfigError(f"another process is training {folder}") from None
            except OSError as error:
                if safe_files.storage_error(error):
                    raise
                raise ConfigError(  # as Lustre says that was mounted without `flock`
                    f"{folder} cannot be locked ({error.strerror}): choose an OUT elsewhere, "
                    "or have this file system mounted with locks"
                ) from None
        (folder / rundir.FAILED).unlink(missing_ok=True)
        safe_files.remove_leftovers(folder / rundir.WEIGHTS)
        if "SLURM_JOB_ID" not in os.environ:  # there launch/run.sh does it, before Slurm can give a warning
            (folder / rundir.STOP).unlink(missing_ok=True)
        yield


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.train", description=__doc__)
    parser.add_argument("--cell", type=int, required=True, help="the run's place in the plan: python -m ablations plan")
    parser.add_argument("words", nargs="+", metavar="NAME=VALUE", help="the study, as for `python -m ablations`")
    args = parser.parse_args(argv)
    try:
        study = from_args(args.words)
        if not 0 <= args.cell < len(study.cells):
            raise ConfigError(f"--cell {args.cell}: the plan has the cells 0 to {len(study.cells) - 1}")
        cell = study.cells[args.cell]
        cell.check_recorded()
        if rundir.read_done(cell.dir) is not None:
            print(f"{cell.name} is finished")
            return Exit.FINISHED
        if reason := stop_file(study.out):
            raise Stop(reason, Exit.KILLED)
        with owned(cell.dir):
            if os.environ.get("RANK", "0") == "0":
                rundir.register(cell.dir, study.registration, rundir.last_step(cell.dir))
            train(cell, study.out)
    except ConfigError as error:
        print(f"error: {safe_files.printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    except Stop as stop:
        print(f"stopped: {cell.name}: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        reason = safe_files.storage_error(error)
        if not reason:
            raise
        fail(cell, reason)
        return Exit.FAILED
    except manifest.Failed as error:
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        if error.again and not full and "SLURM_JOB_ID" in os.environ:  # launch/slurm/attempts.py gives up after a few
            print(f"stopped: {cell.name}: {error}", file=sys.stderr)
            return Exit.FAILED
        fail(cell, str(error))
        return Exit.FAILED
    return Exit.FINISHED


def fail(cell: Cell, reason: str) -> None:
    """Report why a run cannot go on: on the terminal, and in its directory where that can still be written."""
    with suppress(OSError):
        safe_files.write_text(cell.dir / rundir.FAILED, f"{reason}\n")
    print(f"error: {cell.name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
