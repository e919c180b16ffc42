"""GPU and bf16 of this machine, found out without torch: planning must not wait for it."""

import os
from pathlib import Path


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, without torch. CUDA_VISIBLE_DEVICES="" hides it; MEGAHOUR_GPU=1 says that the
    runs will have one, which a login node cannot see."""
    if os.environ.get("MEGAHOUR_GPU"):
        return os.environ["MEGAHOUR_GPU"] == "1"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def has_bf16() -> bool:
    """Whether bf16 is fast here: on any GPU that DeepSpeed still supports, on CPUs with AVX512-BF16, AMX or Arm's."""
    if has_gpu():
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
