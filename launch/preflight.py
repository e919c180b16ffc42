"""Checks, before the first step, that every node is fit to train on. Unfit nodes are named in a file, and the next
attempt avoids them.

Each rank measures its own node. All ranks receive all measurements, and come to the same verdict.
"""

import os
import shutil
import socket
import statistics
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ablations import rundir, safe_files
from ablations.config import ConfigError, Run
from launch.timing import least_seconds
from launch.watch import StopTraining
from model.memory import estimate_memory

# Untuned, on the careful side: a healthy node must not be turned away.
MIN_SPEED_SHARE = 0.7  # of the median rank's speed in a matrix product; only on GPUs, which no one else uses
# Seconds between a node's clock and the median: wrong clocks break make, Slurm and the reading of logs.
MAX_CLOCK_DIFFERENCE = 30.0
MIN_SHARED_BYTES = 64 << 20  # bytes of free /dev/shm that gloo, NCCL and data loaders need
MIN_LINK_SHARE = 0.25  # of the median node's link speed
# The share of a device's memory that a run may need by estimate; the estimate is within 10 % and errs to the high side.
MAX_MEMORY_SHARE = 0.95
# Largest micro-batch in sequences that is chosen where the configuration leaves the choice to the memory.
MAX_MICRO_BATCH_GPU, MAX_MICRO_BATCH_CPU = 64, 8
# The share of a GPU's memory that must be free: where less is, a process that should have ended still holds memory.
MIN_FREE_SHARE = 0.9


@dataclass(frozen=True)
class Node:
    """The measurements of one rank on its node."""

    host: str
    matmul_speed: float  # FLOP/s; 0 without a GPU, since other work on a CPU must not make its node count as unfit
    link_speed: float  # bytes/s over the faster of the links to two other nodes; 0 where there is no other node
    free_memory: float  # share of the device's memory that is free; 1 without a GPU
    free_shm: int  # bytes free in /dev/shm
    free_disk: int  # bytes free on the disk of the run directory
    write_problem: str  # why no file can be written in the run directory; "" where one can be
    clock: float  # seconds since the epoch, read at the same moment on all nodes (up to a collective's latency)


def check_nodes(run: Run, folder: Path, out: Path) -> list[Node]:
    """Measure every node, and raise where a node is unfit or the disk too small. All ranks call this function together.

    Args:
        run: the run's configuration.
        folder: the run directory.
        out: the output root.

    Returns:
        The measurements of all ranks, in the order of ranks.

    Raises:
        StopTraining: some nodes are unfit. Their names and the reasons are added to `out`/bad_nodes.
        ConfigError: the disk cannot hold the run's checkpoints.
    """
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, asdict(measure_node(folder)))
    nodes = [Node(**values) for values in of_ranks]
    checkpoints = folder / rundir.CHECKPOINTS  # a run that is continued has some of them
    copies = run.layout.keep + 1 - min(len(rundir.checkpoints(checkpoints)), run.layout.keep)
    milestones = sum(not (checkpoints / f"weights_{step}").exists() for step in run.milestones)
    need = checkpoint_bytes(run) * copies + checkpoint_bytes(run) // 3 * milestones
    free = min(n.free_disk for n in nodes)
    if free < need:
        weights = f" and the weights at {milestones} shares of the budget (layout.eval_at)" if milestones else ""
        raise ConfigError(
            f"{folder} has {free / 1e9:.3g} GB free; {copies} more checkpoints{weights} need {need / 1e9:.3g} GB. "
            "Make room, lower layout.keep, or choose another OUT."
        )
    bad = unfit_nodes(nodes)
    if dist.get_rank() == 0:
        measured = [
            ("a matrix product", [n.matmul_speed / 1e12 for n in nodes if n.matmul_speed], "TFLOP/s"),
            ("the network", [n.link_speed / 1e9 for n in nodes if n.link_speed], "GB/s"),
        ]
        rates = "".join(f"; {what} {min(v):.3g} to {max(v):.3g} {unit}" for what, v, unit in measured if v)
        print(f"{len({n.host for n in nodes})} nodes checked{rates}", flush=True)
    if bad:
        if dist.get_rank() == 0:
            safe_files.append_lines(out / rundir.BAD_NODES, "".join(f"{host} {why}\n" for host, why in bad.items()))
        raise StopTraining("; ".join(f"node {host}: {why}" for host, why in bad.items()), rundir.Exit.BAD_NODE)
    return nodes


def unfit_nodes(nodes: list[Node]) -> dict[str, str]:
    """Find the unfit nodes, by comparing each rank's measurements with fixed limits and with the median over ranks.
    Returns {host: why it is unfit}."""
    median_matmul = statistics.median(n.matmul_speed for n in nodes)
    median_clock = statistics.median(n.clock for n in nodes)
    median_link = statistics.median([n.link_speed for n in nodes if n.link_speed] or [0.0])
    bad: dict[str, str] = {}
    for n in nodes:
        if n.write_problem:
            bad[n.host] = f"cannot write into the run directory ({n.write_problem})"
        elif n.free_shm < MIN_SHARED_BYTES:
            bad[n.host] = f"/dev/shm has {n.free_shm >> 20} MiB free, {MIN_SHARED_BYTES >> 20} are needed"
        elif n.free_memory < MIN_FREE_SHARE:
            bad[n.host] = f"only {n.free_memory:.0%} of a GPU's memory is free"
        elif n.matmul_speed < MIN_SPEED_SHARE * median_matmul:
            bad[n.host] = f"a matrix product runs at {n.matmul_speed / median_matmul:.0%} of the usual speed"
        elif 0 < n.link_speed < MIN_LINK_SHARE * median_link:
            bad[n.host] = f"its network runs at {n.link_speed / median_link:.0%} of the usual speed"
        elif abs(n.clock - median_clock) > MAX_CLOCK_DIFFERENCE:
            bad[n.host] = f"the clock is {n.clock - median_clock:+.0f} s off"
    return bad


def measure_node(folder: Path) -> Node:
    """Measure this rank's node: compute, network, memory, clock, and the disk on which `folder` lies. All ranks call
    this function together."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    free, total = torch.cuda.mem_get_info() if cuda else (1, 1)
    dist.barrier()
    clock = time.time()
    shm = shutil.disk_usage("/dev/shm").free if os.path.exists("/dev/shm") else MIN_SHARED_BYTES
    return Node(
        socket.gethostname(),
        _matmul_speed(device) if cuda else 0.0,
        _link_speed(device),
        free / total,
        shm,
        shutil.disk_usage(folder).free,
        _reason_not_writable(folder),
        clock,
    )


def _matmul_speed(device: torch.device) -> float:
    """FLOP/s of a bf16 product of 4096 x 4096 matrices, the fastest of eight."""
    n = 4096
    a = torch.ones(n, n, device=device, dtype=torch.bfloat16)
    return 2 * n**3 / least_seconds(lambda: a @ a, device, 8)


def _link_speed(device: torch.device) -> float:
    """Measure this node's network in bytes/s; 0 where there is no other node. All ranks call this function together.

    The nodes form a ring, and the first rank of each node measures the links to both neighbours. The faster link
    counts, since one of the neighbours may be faulty.
    """
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    first = sorted({host: rank for rank, host in reversed(list(enumerate(hosts)))}.values())
    n, best = len(first), 0.0
    data = torch.zeros(16 << 20 if device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=device)
    for turn in range(3):  # the links of a turn share no node; a ring of odd length needs three
        for i in range(n if n > 2 else n - 1):
            pair = first[i], first[(i + 1) % n]
            if turn == (2 if n % 2 and i == n - 1 else i % 2) and dist.get_rank() in pair:
                best = max(best, _exchange_speed(data, *pair, device))
        dist.barrier()
    rates: list[Any] = [None] * len(hosts)
    dist.all_gather_object(rates, best)
    return rates[hosts.index(socket.gethostname())]


def _exchange_speed(data: torch.Tensor, a: int, b: int, device: torch.device) -> float:
    """The bytes/s at which `data` is sent from rank `a` to rank `b` and back. The fastest of five exchanges counts,
    since the first sets up the connection. Both ranks call this function together."""
    rank, peer = dist.get_rank(), a + b - dist.get_rank()

    def send_and_receive() -> None:
        for transfer in (dist.send, dist.recv) if rank == a else (dist.recv, dist.send):
            transfer(data, peer)

    return 2 * data.nbytes / least_seconds(send_and_receive, device, 5)


def _reason_not_writable(folder: Path) -> str:
    """The operating system's reason why no file can be written in `folder`; "" where files can be written."""
    path = folder / f".probe-{uuid.uuid4().hex}"
    try:
        path.write_bytes(b"x" * 4096)
        path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def checkpoint_bytes(run: Run) -> int:
    """Bytes of a checkpoint: weights and AdamW's two moments, 4 bytes each for every parameter."""
    from model.count import count_parameters

    return 12 * count_parameters(run.model)


def check_fp8(run: Run) -> None:
    """Raise ConfigError for train.precision=fp8 on a GPU that has no FP8 matrix products (compute capability below
    8.9). A CPU emulates them."""
    if run.train.precision != "fp8" or not torch.cuda.is_available():
        return
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if (major, minor) < (8, 9):
        raise ConfigError(
            "train.precision=fp8 needs a GPU of compute capability 8.9 or above (Ada, Hopper, Blackwell);"
            f" {name} has {major}.{minor}: bf16 runs there"
        )


def check_fits_memory(run: Run, ranks: int) -> None:
    """Check that a run, by estimate, fits into the memory of its device. Raises ConfigError where it does not; the
    message names the largest micro-batch that would fit. `run`: the run's configuration, with a micro-batch; `ranks`:
    the number of ranks."""
    total = device_memory()
    needed = bytes_needed(run, run.layout.micro_batch, ranks)
    if needed <= MAX_MEMORY_SHARE * total:
        return
    largest = largest_micro_batch(run, ranks, run.layout.micro_batch - 1)
    cure = "no micro-batch does: more ranks (ZeRO shares the optimizer among them), or a smaller model"
    if largest:
        cure = f"layout.micro_batch={largest} would need {bytes_needed(run, largest, ranks) / 1e9:.3g} GB"
    raise ConfigError(f"the run needs {needed / 1e9:.3g} GB on each rank, by estimate, of {total / 1e9:.3g} GB; {cure}")


def choose_micro_batch(run: Run, ranks: int) -> Run:
    """Return the run's configuration, with a micro-batch chosen where layout.micro_batch is 0.

    It is the largest that by estimate fits into the device's memory, up to MAX_MICRO_BATCH_GPU or MAX_MICRO_BATCH_CPU
    sequences. More are not expected to be faster. Where not even one sequence fits it is 1, and `check_fits_memory`
    refuses the run. `ranks`: the number of ranks.
    """
    if run.layout.micro_batch:
        return run
    most = MAX_MICRO_BATCH_GPU if torch.cuda.is_available() else MAX_MICRO_BATCH_CPU
    largest = largest_micro_batch(run, ranks, most) or 1
    return replace(run, layout=replace(run.layout, micro_batch=largest))


def largest_micro_batch(run: Run, ranks: int, most: int) -> int:
    """The largest micro-batch, up to `most` sequences, that by estimate fits into memory and divides each rank's share
    of every batch; 0 where there is none. `ranks`: the number of ranks."""
    replicas = max(1, ranks // run.layout.tp)
    for micro in range(most, 0, -1):
        whole = all(size % (micro * replicas) == 0 for size in run.batch_sizes.sizes)
        if whole and bytes_needed(run, micro, ranks) <= MAX_MEMORY_SHARE * device_memory():
            return micro
    return 0


def bytes_needed(run: Run, micro_batch: int, ranks: int) -> int:
    """The estimated bytes of memory on each of `ranks` ranks, for micro-batches of `micro_batch` sequences."""
    replicas = max(1, ranks // run.layout.tp)
    accumulate = max(1, run.train.batch // (micro_batch * replicas))
    precision, zero, tp = run.train.precision, run.layout.zero, run.layout.tp
    cuda = torch.cuda.is_available()
    return estimate_memory(run.model, micro_batch, precision, zero, replicas, accumulate, cuda, tp)["total"]


def device_memory() -> int:
    """Bytes of memory for this rank: its GPU's, or on a CPU this rank's share of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
