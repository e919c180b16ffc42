"""The accelerators that a plan may name: peak, memory, bandwidths, power.

Peaks, bandwidths and watts are those of the makers' data sheets as catalogues quote them (secondary). Memory is what
nvidia-smi shows for cards up to the H100 (seen in public logs; for V100s unverified), and the nominal one for later
cards. The network bandwidth is that of the node divided by its GPUs. It differs between sites more than GPUs do; a
site's own measurement replaces it (ablations/plan/site_speed.py).

In a node of four V100s each pair is connected by two of the six NVLinks of a GPU. On Jean Zay NCCL builds six rings
that use all pairs equally (bigscience experiments/bandwidth/n1_32gb_all_reduce_bench.txt), so that two GPUs have a
third of `link` between them. An MI300X has one link to each of seven others. The nodes of the other GPUs have a switch.
"""

from dataclasses import dataclass

from ablations.values import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """An accelerator. FLOP/s are without sparsity, in the 16-bit format used for training; bandwidths in bytes per
    second."""

    name: str
    peak: float
    memory: float  # GiB that a program can have: what nvidia-smi says, less than what is printed on the card
    bandwidth: float  # of its memory
    link: float  # to the other GPUs of its node together, in one direction
    network: float  # to other nodes, in one direction: its share of the node's
    node: int  # GPUs in a node, as these are usually built
    watts: float  # at most
    bf16: bool
    source: str
    switched: bool = True  # whether any GPU of the node can be reached at the rate of `link`, or at a part of it

    def link_among(self, ranks: int) -> float:
        """The bandwidth in bytes per second from a GPU to `ranks` - 1 other GPUs of its node together, in one
        direction."""
        if self.switched or ranks <= 1:
            return self.link
        return self.link * min(1.0, (ranks - 1) / (self.node - 1))


_NVIDIA = "NVIDIA's data sheet, as quoted (secondary)"
# The cards of "Cramming" (Geiping & Goldstein 2022, appendix B.1) with its peaks, in which it counts budgets (of the
# A4000 its authors' estimate). The rest from memory, unverified; a network of 10 Gbit/s is assumed.
_CRAMMING = "peak: Geiping & Goldstein 2022; memory, bandwidths and watts from memory (unverified)"
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU(
            "v100-16",
            125e12,
            16160 / 1024,
            0.9e12,
            150e9,
            12.5e9,
            4,
            300,
            False,
            f"{_NVIDIA}; links and network: Jean Zay's (published)",
            switched=False,
        ),
        GPU(
            "v100-32",
            125e12,
            32510 / 1024,
            0.9e12,
            150e9,
            12.5e9,
            4,
            300,
            False,
            f"{_NVIDIA}; links and network: Jean Zay's (published)",
            switched=False,
        ),
        GPU(
            "a100-40",
            312e12,
            40536 / 1024,
            1.555e12,
            300e9,
            25e9,
            8,
            400,
            True,
            f"{_NVIDIA}; network: llm-foundry's cluster",
        ),
        GPU(
            "a100-80",
            312e12,
            81252 / 1024,
            2.039e12,
            300e9,
            25e9,
            8,
            400,
            True,
            f"{_NVIDIA}; network: llm-foundry's cluster",
        ),
        GPU(
            "h100",
            989.5e12,
            81559 / 1024,
            3.35e12,
            450e9,
            50e9,
            8,
            700,
            True,
            f"{_NVIDIA}; network: 400 Gbit/s each (assumed)",
        ),
        GPU(
            "h200", 989.5e12, 141e9 / GIB, 4.8e12, 450e9, 50e9, 8, 700, True, f"{_NVIDIA}; network assumed as for h100"
        ),
        GPU(
            "b200",
            2250e12,
            180e9 / GIB,
            8.0e12,
            900e9,
            50e9,
            8,
            1000,
            True,
            "catalogues (secondary); network assumed as for h100",
        ),
        GPU("2080ti", 53.8e12, 11264 / 1024, 0.616e12, 16e9, 1.25e9, 1, 250, False, _CRAMMING),
        GPU("a4000", 88.45e12, 16376 / 1024, 0.448e12, 32e9, 1.25e9, 1, 140, True, _CRAMMING),
        GPU("a6000", 154.8e12, 49140 / 1024, 0.768e12, 32e9, 1.25e9, 1, 300, True, _CRAMMING),
        GPU(
            "mi300x",
            1307e12,
            192e9 / GIB,
            5.3e12,
            448e9,
            50e9,
            8,
            750,
            True,
            "catalogues (secondary); network assumed as for h100",
            switched=False,
        ),
    )
}
ALIASES = {"v100": "v100-32", "a100": "a100-80", "a100-80gb": "a100-80", "a100-40gb": "a100-40", "h100-80": "h100"}
ALIASES |= {"v100-32gb": "v100-32", "v100-16gb": "v100-16", "h100-80gb": "h100", "h200-141": "h200"}


def hardware(name: str) -> GPU:
    """The accelerator with this name, in upper or lower case; "a100" is the one with 80 GB. Raises ConfigError where
    the table has no such accelerator; the message names those that it has."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    key = ALIASES.get(key, key)
    if key not in GPUS:
        known = [*GPUS, *ALIASES]
        raise ConfigError(
            f"{name!r} is no known accelerator, which are {', '.join(GPUS)}{did_you_mean(key, known)}; "
            "machines are said as a100, 4 a100 or 8x8 a100"
        )
    return GPUS[key]


def accelerator(device: str) -> str:
    """The name in the hardware table of a device, given as torch names it: "NVIDIA A100-SXM4-80GB" -> "a100-80"; ""
    where the table has no such device."""
    text = device.upper().replace(" ", "-")
    for name in ("V100", "A100"):
        if name in text:
            return name.lower() + next((f"-{size}" for size in ("16", "32", "40", "80") if f"-{size}GB" in text), "")
    names = {"H200": "h200", "H100": "h100", "B200": "b200", "MI300X": "mi300x"}
    names |= {"2080-TI": "2080ti", "RTX-A4000": "a4000", "RTX-A6000": "a6000"}
    return next((key for name, key in names.items() if name in text), "")


def peak_flops(device: str, devices: int, seconds: float) -> float | None:
    """The FLOPs that GPUs could do at the peak of their data sheet, peak FLOP/s x devices x seconds: the unit in which
    "Cramming" states its budgets. None for a device that the table does not have. `device`: the GPU's name in torch,
    such as "NVIDIA A100-SXM4-80GB"; `devices`: the number of such GPUs; `seconds`: of training."""
    name = accelerator(device)
    return hardware(name).peak * devices * seconds if name else None
