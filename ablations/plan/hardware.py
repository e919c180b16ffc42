"""The accelerators that a plan can name, or that a run is trained on: peak FLOP/s, memory, bandwidths and power.

Peaks, bandwidths and watts are from the makers' data sheets, as catalogues quote them (secondary). The memory of cards
up to the H100 is the number that nvidia-smi shows (seen in public logs; for V100s unverified). The memory of later
cards is nominal. The network bandwidth of a GPU is the node's bandwidth divided by the number of GPUs. It differs more
between sites than between GPUs, so speeds measured at a site correct the predictions (ablations/plan/site_speed.py).

In a node of four V100s, each GPU has six NVLinks, two to each other GPU. On Jean Zay, NCCL builds six rings that use
all pairs equally (bigscience experiments/bandwidth/n1_32gb_all_reduce_bench.txt), so two GPUs have a third of `link`
between them. An MI300X has one link to each of the seven other GPUs. Nodes of the other GPUs have a switch.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from ablations.values import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """An accelerator, as a row of gpus.csv describes it. Bandwidths are in bytes per second."""

    name: str
    peak: float  # dense FLOP/s in the 16-bit format that is used for training
    memory: float  # GiB that a program can use, as nvidia-smi shows: less than the card's nominal memory
    bandwidth: float  # of its memory
    link: float  # to all other GPUs of its node together, in one direction
    network: float  # to other nodes, in one direction: its share of the node's bandwidth
    node: int  # the number of GPUs in a usual node
    watts: float  # at most
    bf16: bool  # whether it computes in bf16
    source: str
    switched: bool = True  # whether a single GPU of the node can be reached at the full rate of `link`
    device: str = "(?!)"  # a regular expression for the names that torch gives such a device; (?!) matches none
    similar: str = ""  # the most similar accelerator with published speeds (published.csv)

    @property
    def precision(self) -> str:
        """The setting train.precision of runs on this accelerator."""
        return "bf16" if self.bf16 else "fp16"

    def group_bandwidth(self, ranks: int) -> float:
        """The bandwidth from one GPU to the other GPUs of a group in its node together, in bytes per second and one
        direction. `ranks`: the number of GPUs in the group, this one included."""
        if self.switched or ranks <= 1:
            return self.link
        return self.link * min(1.0, (ranks - 1) / (self.node - 1))


# For the cards of "Cramming" (2080ti, a4000, a6000) the table has the peaks by which that paper counts budgets (Geiping
# & Goldstein 2022, appendix B.1; for the A4000 its authors' estimate), and an assumed network of 10 Gbit/s.
TABLE = Path(__file__).parent / "gpus.csv"


def read_gpus() -> dict[str, GPU]:
    """Read the accelerators in gpus.csv: {name: accelerator}. The table has memory in MiB, as nvidia-smi shows it, or
    in nominal GB; both are converted to GiB."""
    gpus = {}
    with open(TABLE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            size, unit = row["memory"].split()
            memory = float(size) / 1024 if unit == "MiB" else float(size) * 1e9 / GIB
            peak, bandwidth, link, network = (float(row[key]) for key in ("peak", "bandwidth", "link", "network"))
            bf16, switched = (row[key] == "yes" for key in ("bf16", "switched"))
            node, watts, source = int(row["node"]), float(row["watts"]), row["source"]
            numbers = (peak, memory, bandwidth, link, network, node, watts)
            gpus[row["name"]] = GPU(row["name"], *numbers, bf16, source, switched, row["device"], row["similar"])
    return gpus


GPUS = read_gpus()
ALIASES = {"v100": "v100-32", "a100": "a100-80", "a100-80gb": "a100-80", "a100-40gb": "a100-40", "h100-80": "h100"}
ALIASES |= {"v100-32gb": "v100-32", "v100-16gb": "v100-16", "h100-80gb": "h100", "h200-141": "h200"}


def find_gpu(name: str) -> GPU:
    """Find an accelerator by its name in gpus.csv, or by an alias such as "a100" for "a100-80". Case does not matter.
    Raises ConfigError where there is none; the message names the accelerators that there are."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = ALIASES.get(key, key)
    if key not in GPUS:
        raise ConfigError(
            f"{name!r} is no known accelerator, which are {', '.join(GPUS)}{did_you_mean(key, [*GPUS, *ALIASES])}; "
            "machines are said as a100, 4 a100 or 8x8 a100"
        )
    return GPUS[key]


def gpu_of_device(device: str) -> GPU | None:
    """The accelerator in gpus.csv that has a name given by torch, such as "NVIDIA A100-SXM4-80GB" for a100-80. None
    where the table has none; the first row that matches counts."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.device, device, re.IGNORECASE)), None)
