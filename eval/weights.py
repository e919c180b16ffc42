"""The weights of a run: those of its end, and those that were kept on the way (layout.eval_at, launch/checkpoint.py).

What is kept on the way lies in `checkpoints/weights_N`: safetensors with pieces of the flattened fp32 parameters, named
`parameter|weight|start`, with `|rank|size` after it where tensor parallelism cut the parameter, and `checkpoint.json`,
without which the folder is not whole.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# of a run's configuration -> of the weights that training computes with, which fp8 rounds further as it goes
PRECISIONS = {"bf16": "bfloat16", "fp8": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Weights:
    """One model of a run. `step` and `tokens` are None at its end."""

    path: Path  # a file, or a folder with a manifest
    step: int | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        """Of the result: eval.json, or eval-step_N.json."""
        return "eval" if self.step is None else f"eval-step_{self.step}"

    @property
    def sha256(self) -> str:
        if self.step is not None:
            files = json.loads((self.path / "checkpoint.json").read_text())["files"]
            return hashlib.sha256("".join(files[name]["sha256"] for name in sorted(files)).encode()).hexdigest()
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, run: dict, model: Any) -> dict[str, Any]:
        """A state_dict for `model`, in the precision in which the run computed.

        Raises:
            ValueError: when a file is not what was written, or something is missing.
        """
        from safetensors.torch import load_file

        if self.step is None:
            return load_file(self.path)
        import torch

        from model.shard import shard, unshard

        pieces: dict[str, dict[tuple[int, int], dict[int, Any]]] = {}  # parameter -> (rank, size) -> {start: piece}
        for name, sums in json.loads((self.path / "checkpoint.json").read_text())["files"].items():
            with open(self.path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sums["sha256"]:
                    raise ValueError(f"{self.path / name} is damaged: its sha256 differs")
            for key, piece in load_file(self.path / name).items():
                parameter, _, start, *part = key.split("|")
                rank, size = map(int, part or (0, 1))
                pieces.setdefault(parameter, {}).setdefault((rank, size), {})[int(start)] = piece
        precision = getattr(torch, PRECISIONS.get(run["config"]["train"]["precision"], "float32"))
        state = {}
        for name, like in model.named_parameters():
            found = pieces.get(name, {})
            parts = []
            for rank, size in sorted(found):
                flat = torch.cat([found[rank, size][start] for start in sorted(found[rank, size])])
                shape = shard(name, torch.empty(like.shape, device="meta"), rank, size).shape
                if flat.numel() != shape.numel() or size != len(found):
                    raise ValueError(f"{self.path} holds only a part of {name}, or holds it in another shape")
                parts.append(flat.view(shape))
            if not parts:
                raise ValueError(f"{self.path} lacks {name}")
            state[name] = unshard(name, parts).to(precision)
        return state


def found(directory: Path) -> list[Weights]:
    """What of a run can be evaluated: what was kept on the way, in the order of training, then the end."""
    kept = []
    for path in directory.glob("checkpoints/weights_*/checkpoint.json"):
        what = json.loads(path.read_text())
        kept.append(Weights(path.parent, what["step"], what["tokens"]))
    end = directory / "weights.safetensors"
    ended = end.exists() and (directory / "done").exists()
    return sorted(kept, key=lambda each: each.step or 0) + [Weights(end)] * ended


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
