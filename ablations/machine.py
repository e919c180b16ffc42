"""Whether this machine has a GPU, and fast bf16. Torch is not asked, since its import takes seconds."""

import os
from pathlib import Path

DRIVER, DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")


def installed_gpus() -> int:
    """The number of NVIDIA GPUs that the driver lists or, where a container hides the list, that have device files."""
    return max(len(list(DRIVER.glob("*"))), len(list(DEVICES.glob("nvidia[0-9]*"))))


def has_gpu() -> bool:
    """Whether the runs will have an NVIDIA GPU: whether one is visible here (`sees_gpu`). The environment variable
    MEGAHOUR_GPU, 1 or 0, overrides this: a login node without a GPU may submit runs to nodes with one."""
    if os.environ.get("MEGAHOUR_GPU"):
        return os.environ["MEGAHOUR_GPU"] == "1"
    return sees_gpu()


def sees_gpu() -> bool:
    """Whether an NVIDIA GPU is visible on this machine, whatever MEGAHOUR_GPU says. CUDA_VISIBLE_DEVICES="" hides all
    GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return installed_gpus() > 0


def has_bf16() -> bool:
    """Whether bf16 is fast here: on every GPU that DeepSpeed supports, and on CPUs with instructions for it
    (AVX512-BF16, AMX, or Arm's)."""
    if has_gpu():
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
