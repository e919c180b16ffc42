"""Trains one cell of a study: `python -m launch.train --cell 3 POS=alibi`.

The same command continues from the last complete checkpoint. On a CPU an interrupted run ends bit for bit equal to an
uninterrupted one. Under torchrun or Slurm each rank runs this command.
"""

import argparse
import errno
import math
import os
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ablations import rundir, safe_files
from ablations.budget import ClockBudget, learning_rate
from ablations.compilation import check_compiler
from ablations.config import ConfigError, Run, fit_micro_batch
from ablations.plan.reliability import feasible_save_interval
from ablations.rundir import Exit
from ablations.study import Cell, from_args
from launch import manifest
from launch.clock import Clock
from launch.divergence import divergence_reason, roll_back
from launch.lock import run_lock
from launch.training_state import TrainingState
from launch.watch import StopTraining, Watch, stop_reason

if TYPE_CHECKING:
    from data.batches import Batches
    from launch.checkpoint import Checkpoints
    from launch.engine import Engine, PendingStep
    from launch.log import Log
    from model.objective import SpecialTokens


class LaunchedStep(NamedTuple):
    """An optimizer step that was launched and whose loss has not been read. The device may still be computing it."""

    step: int
    samples: int  # samples (sequences) that the run has trained on, those of this step included
    batch_size: int  # samples of this step, on all ranks
    pending: "PendingStep"


class StepResults(NamedTuple):
    """The combined results of the steps for which one call of `read_steps` waited: none, one or two."""

    grad_norm: float  # gradient norm of the last of these steps, before clipping; NaN without a step
    save: bool  # whether any rank requested a checkpoint
    stop: bool  # whether any rank requested that training stop
    divergence: str  # why the last of these steps is a divergence; "" where it is none
    batch_size: int  # samples of the last of these steps, on all ranks


@dataclass
class Session:
    """What the training loop works with on one rank, from the start of this process to its end."""

    cell: Cell
    out: Path  # the output root
    hosts: list[str]  # the node of each rank
    engine: "Engine"
    batches: "Batches"
    special: "SpecialTokens"
    checkpoints: "Checkpoints"
    watch: Watch
    clock: Clock
    log: "Log | None"  # None on all ranks but the first
    state: TrainingState
    rank: int
    world: int  # the number of ranks
    unread: deque[LaunchedStep] = field(default_factory=deque)  # steps whose losses have not been read
    saved_at: float = field(default_factory=time.perf_counter)  # when the last checkpoint was begun
    logged_at: float = field(default_factory=time.perf_counter)  # when the last line of the log was written
    logged_samples: int = 0  # samples trained on when that line was written
    first_step: int = 1  # the number of the first step that this process makes

    @property
    def run(self) -> Run:
        return self.cell.run


def train(cell: Cell, out: Path) -> None:
    """Train a run from its first step, or from its last checkpoint, to the end of its budget.

    Args:
        cell: the run, with its configuration and directory.
        out: the output root, which has the prepared data.

    Raises:
        StopTraining: training was asked to stop and has saved a checkpoint; or a node is unfit.
        manifest.RunFailed: the run cannot go on; the message says why.
    """
    import torch.distributed as dist

    session = start_session(cell, out)
    run, log, watch, checkpoints = session.run, session.log, session.watch, session.checkpoints
    reads_late = reads_loss_a_step_late(session.engine, run)
    with watch:
        while not session.state.budget_is_used_up(run):
            launch_step(session)
            checkpoints.raise_save_error()
            state = session.state
            save_every = run.layout.save_every
            save_due = state.step in run.milestones or (save_every > 0 and state.step % save_every == 0)
            log_due = state.step % run.layout.log_every == 0
            # a checkpoint or a line of the log may only describe steps that are known not to have diverged
            results = read_steps(
                session, wait_for_all=not reads_late or save_due or log_due or state.budget_is_used_up(run)
            )
            if results.divergence:
                return_to_checkpoint(session, results)
                continue
            if log_due or state.budget_is_used_up(run):
                write_log(session, results.grad_norm)
            if results.save or results.stop or save_due or state.budget_is_used_up(run):
                with watch.allow_storage_time():
                    if log:
                        log.sync()  # a checkpoint without the lines before it would be a gap in the curve
                    session.engine.save(checkpoints, state.step, asdict(state))
                session.saved_at = time.perf_counter()
            if results.stop:
                stop_training(session)
        with watch.allow_storage_time():
            checkpoints.wait()
    write_trained_weights(session)
    if session.engine.device.type == "cuda":
        dist.destroy_process_group()  # NCCL warns of leaks otherwise


def start_session(cell: Cell, out: Path) -> Session:
    """Check the nodes, build the engine, prove that the model is the configured one, and load the last checkpoint.

    Args:
        cell: the run, with its configuration and directory.
        out: the output root, which has the prepared data.

    Raises:
        StopTraining: a node is unfit.
        ConfigError: the configuration does not fit the machine.
        manifest.RunFailed: the data cannot be prepared, a proof fails, or a checkpoint cannot be loaded.
    """
    from data.batches import Batches
    from launch import deepspeed_setup, preflight, run_model
    from launch.engine import build_engine
    from launch.log import Log

    rank, world = deepspeed_setup.initialise_process(cell.run)
    run = preflight.choose_micro_batch(cell.run, world)
    cell = replace(cell, run=fit_micro_batch(run, world // run.layout.tp))
    run, folder = cell.run, cell.dir
    preflight.check_fp8(run)
    preflight.check_fits_memory(run, world)
    hosts = [node.host for node in preflight.check_nodes(run, folder, out)]
    data = manifest.prepare_data(run, out / rundir.DATA)
    engine = build_engine(run_model.build_model(run), run, world)
    # before the first step: raises where a proof fails, or a setting in effect is not the configured one
    manifest.write_run_json(cell, engine, data, out / rundir.DATA, hosts)

    sources = [(source["prefix"], source["weight"]) for source in data["train"]]
    batches = Batches(sources, run.model.seq, run.seed, in_order=run.data.order != "random")
    special = manifest.special_tokens(run, data)
    checkpoints = open_checkpoints(cell, data)
    state = TrainingState.from_checkpoint(run, engine.load(checkpoints))
    state.compile_seconds += engine.compile_seconds
    # where the budget is a time, compiling uses some of it
    clock = Clock(state.seconds + (engine.compile_seconds if isinstance(run.budget, ClockBudget) else 0.0))
    steps = None if run.ends_by_clock else run.steps
    return Session(
        cell,
        out,
        hosts,
        engine,
        batches,
        special,
        checkpoints,
        Watch(folder, out, steps, rank, hosts, run.layout.hang, run.layout.patience),
        clock,
        Log(folder, run, cell.name, state.step) if rank == 0 else None,
        state,
        rank,
        world,
        logged_samples=state.samples,
        first_step=state.step + 1,
    )


def open_checkpoints(cell: Cell, data: dict[str, Any]) -> "Checkpoints":
    """The checkpoints of a run. On loading, a checkpoint of other settings or data is refused. `data`: the manifest
    that `manifest.prepare_data` returned."""
    from launch.checkpoint import Checkpoints

    run = cell.run
    identity = {
        "fingerprint": run.fingerprint,
        "corpus sha256": data["sha256"],
        "tokenizer sha256": data["tokenizer"]["sha256"],
    }
    folder = safe_files.path_inside(cell.dir, rundir.CHECKPOINTS)
    return Checkpoints(folder, run.layout.keep, run.milestones, identity)


def launch_step(session: Session) -> None:
    """Launch the next optimizer step on this rank's samples, without waiting for its result. Counts it in
    `session.state` and appends it to `session.unread`."""
    run, engine, state = session.run, session.engine, session.state
    size = run.layout.tp  # ranks that hold a model together see the same samples
    replica, replicas = session.rank // size, session.world // size
    samples = state.next_samples(run)
    first, end = (samples.start + state.skipped + r * len(samples) // replicas for r in (replica, replica + 1))
    rank_samples = range(first, end)
    lr = learning_rate(run.train, run.budget.used_share(samples.stop * run.model.seq, state.seconds))
    dropout_seed = (run.seed * 1_000_003 + state.step) * replicas + replica
    save = session.rank == 0 and time.perf_counter() - session.saved_at > seconds_between_saves(session)
    batch = engine.model.objective.batch(session.batches.batch(rank_samples), run.seed, rank_samples, session.special)
    stop = bool(session.watch.stop_reason)
    pending = engine.launch_step(batch, lr, dropout_seed, save=save, stop=stop, clock=session.clock.read)
    state.step += 1
    state.samples = samples.stop
    session.unread.append(LaunchedStep(state.step, state.samples, len(samples), pending))
    session.watch.step_ended(state.step)
    if session.log and state.step == session.first_step:
        import psutil

        started = time.time() - psutil.Process().create_time()
        print(
            f"first step {started:.1f} s after the start, {engine.compile_seconds:.1f} s of them compiling", flush=True
        )


def read_steps(session: Session, wait_for_all: bool) -> StepResults:
    """Wait for launched steps, add their losses to the session's state, and return their combined results.

    Stops at a divergence: `session.state` then has the step and the samples of the step that diverged.

    Args:
        session: the training session.
        wait_for_all: whether to wait for all launched steps. If not, the last one remains under way while the host
            works, unless a rank has requested a checkpoint or the end of training.
    """
    state, unread = session.state, session.unread
    norm, save, stop, divergence, batch_size = math.nan, False, False, "", 0
    while unread and not divergence and (wait_for_all or len(unread) > 1):
        launched = unread.popleft()
        batch_size = launched.batch_size
        loss, norm, wants_save, wants_stop, state.seconds = launched.pending.read()
        save, stop = save or wants_save, stop or wants_stop
        wait_for_all = wait_for_all or save or stop
        if divergence := divergence_reason(session.run, launched.step, state.recent, loss, norm):
            state.step, state.samples = launched.step, launched.samples
        else:
            state.losses.append(loss)
            state.recent = [*state.recent[-63:], loss]
    return StepResults(norm, save, stop, divergence, batch_size)


def return_to_checkpoint(session: Session, results: StepResults) -> None:
    """After a divergence: load an earlier checkpoint, skip the data that led to the divergence, and remove later lines
    from the log. `results`: what `read_steps` returned. Raises manifest.Diverged where the configuration allows no
    further rollback, or no checkpoint is early enough."""
    session.unread.clear()
    with session.watch.allow_storage_time():
        session.state = roll_back(
            session.cell, session.engine, session.checkpoints, session.state, results.divergence, results.batch_size
        )
    if session.log:
        session.log.rewind(session.state.step)
    session.logged_at = session.saved_at = time.perf_counter()
    session.logged_samples = session.state.samples


def write_log(session: Session, grad_norm: float) -> None:
    """Write a line of the log: mean loss and speed since the last line, and the present state. `grad_norm`: the
    gradient norm of the last step, before clipping; null in the log where it is not finite."""
    state, engine, seq = session.state, session.engine, session.run.model.seq
    now, busy = time.perf_counter(), engine.forward_seconds()
    speed = (state.samples - session.logged_samples) * seq / (now - session.logged_at)
    if session.log:
        session.log.write(
            {
                "step": state.step,
                "tokens": state.samples * seq,
                "loss": math.fsum(state.losses) / len(state.losses),
                "lr": engine.lr,
                "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
                "tokens_per_second": speed,
                "seconds": state.seconds,
                **engine.loss_scale_metrics,
            }
        )
    session.watch.record_speed(speed, busy)
    session.logged_at, session.logged_samples, state.losses = now, state.samples, []


def stop_training(session: Session) -> None:
    """Wait until all ranks have written the last checkpoint to the disk, then raise StopTraining to end this
    process."""
    import torch.distributed as dist

    with session.watch.allow_storage_time():
        session.checkpoints.wait()
        dist.barrier()  # once a rank exits, all others are ended, and a checkpoint needs the files of all ranks
    code = Exit.KILLED if stop_reason(session.out) else Exit.RESUBMIT
    raise StopTraining(session.watch.stop_reason or "another rank was asked to stop", code)


def write_trained_weights(session: Session) -> None:
    """Write the trained weights, and then the file `done`, which marks the run as trained."""
    run, engine, state, folder = session.run, session.engine, session.state, session.cell.dir
    engine.write_weights(folder / rundir.WEIGHTS)
    if not session.log:
        return
    session.log.sync()
    summary = {
        "steps": state.step,
        "tokens": state.samples * run.model.seq,
        "seconds": state.seconds,
        "ranks": session.world,
        **engine.loss_scale_metrics,
    }
    if isinstance(run.budget, ClockBudget):
        summary |= {"budget_seconds": run.budget.seconds, "compile_seconds": state.compile_seconds}
    rundir.write_done(folder, summary)
    session.log.close()  # W&B may wait long for its server


def reads_loss_a_step_late(engine: "Engine", run: Run) -> bool:
    """Whether the loss of a step is read only when the next step is under way, so that a GPU need not wait for the
    host. False on a CPU, and where a wall clock ends the run: the time of a step then decides whether another
    follows."""
    return engine.device.type == "cuda" and not isinstance(run.budget, ClockBudget)


def seconds_between_saves(session: Session) -> float:
    """Seconds from one checkpoint to the next, computed from layout.mtbf and from how long the last save took. Before
    the first save they are 30. Infinity where layout.save_every sets the steps between checkpoints."""
    layout, checkpoints = session.run.layout, session.checkpoints
    if layout.save_every:
        return math.inf
    if not checkpoints.seconds:
        return 30.0  # early, since the first save measures how long a save takes
    mtbf = layout.mtbf * 3600 / len(set(session.hosts))
    return feasible_save_interval(checkpoints.stall, checkpoints.seconds, mtbf)


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
        cell.check_same_configuration()
        if rundir.read_done(cell.dir) is not None:
            print(f"{cell.name} is finished")
            return Exit.FINISHED
        check_compiler(cell.run)
        if reason := stop_reason(study.out):
            raise StopTraining(reason, Exit.KILLED)
        with run_lock(cell.dir):
            if os.environ.get("RANK", "0") == "0":
                rundir.append_registration(cell.dir, study.registration, rundir.last_step(cell.dir))
            train(cell, study.out)
    except ConfigError as error:
        print(f"error: {safe_files.printable(str(error))}", file=sys.stderr)
        return Exit.INVALID
    except StopTraining as stop:
        print(f"stopped: {cell.name}: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        reason = safe_files.storage_error_message(error)
        if not reason:
            raise
        report_failure(cell, reason)
        return Exit.FAILED
    except manifest.RunFailed as error:
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        if error.retry and not full and "SLURM_JOB_ID" in os.environ:  # launch/slurm/attempts.py gives up after a few
            print(f"stopped: {cell.name}: {error}", file=sys.stderr)
            return Exit.FAILED
        report_failure(cell, str(error))
        return Exit.FAILED
    return Exit.FINISHED


def report_failure(cell: Cell, reason: str) -> None:
    """Print `reason`, why a run cannot continue, and write it into the file `failed` of the run directory, if that is
    possible."""
    with suppress(OSError):
        safe_files.write_text(cell.dir / rundir.FAILED, f"{reason}\n")
    print(f"error: {cell.name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
