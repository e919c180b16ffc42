"""The weights of a run that can be evaluated: those at the end of training, and those saved during training
(layout.eval_at).

Weights saved at step N are in the folder `checkpoints/weights_N` (written by launch/checkpoint.py). It has safetensors
files with pieces of the flattened fp32 parameters, named `parameter|weight|start`, with `|rank|size` appended where
tensor parallelism cut the parameter. It also has `checkpoint.json`, without which the folder is not complete.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from model.config import ModelConfig
from model.count import count_parameters

# train.precision of a run -> dtype of the weights in its forward passes; fp8 rounds these further in each product
PRECISIONS = {"bf16": "bfloat16", "fp8": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Weights:
    """The weights of a run at one point of training. `step` and `tokens` (the number trained on so far) are None for
    the end of training. `path` is then a file, otherwise a folder."""

    path: Path  # a file, or a folder with a manifest
    step: int | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        """The name of the file with the scores of these weights, without ".json"."""
        return "eval" if self.step is None else f"eval-step_{self.step}"

    @property
    def sha256(self) -> str:
        """A hash that identifies the weights: the sha256 of the file, or a sha256 over the hashes of a folder's
        files."""
        if self.step is not None:
            files = read_manifest(self.path)["files"]
            return hashlib.sha256("".join(files[name]["sha256"] for name in sorted(files)).encode()).hexdigest()
        status = self.path.stat()
        return _sha256(self.path, status.st_size, status.st_mtime_ns)

    def verify_hash(self) -> str:
        """Check that the weights at the end of training are those that training wrote, by the sha256 in the file
        `done`. Weights saved during training are checked by `state_dict` instead.

        Returns:
            "", or a sentence for the user where `done` has no sha256, because an earlier version wrote it.

        Raises:
            ValueError: the sha256 differs, so that the file is damaged or another one.
        """
        if self.step is not None:
            return ""  # `read` checks each file against the manifest beside it
        done = rundir.read_done(self.path.parent) or {}
        if "weights" not in done:
            return f"{self.path.parent / rundir.DONE} has no sha256 of the weights: whether they are whole is not known"
        if done["weights"].get("sha256") != self.sha256:
            raise safe_files.Damaged(
                f"{self.path} is damaged: its sha256 is not the one that training wrote into `done`"
            )
        return ""

    def check_size(self, cfg: ModelConfig) -> None:
        """Check that the files are large enough for the parameters of a model with configuration `cfg`, before memory
        is allocated for it: a run.json that is damaged or of unknown origin may name any size.

        Raises:
            Damaged: there are fewer bytes than parameters.
        """
        files = [self.path] if self.step is None else [self.path / name for name in read_manifest(self.path)["files"]]
        size, count = sum(path.stat().st_size for path in files), count_parameters(cfg)
        if size < count:
            raise safe_files.Damaged(
                f"{self.path} has {size:,} bytes, and the model in {rundir.RUN} beside it {count:,} parameters"
            )

    def state_dict(self, run: dict, model: Any) -> dict[str, Any]:
        """The weights as a state_dict for `model`. Weights saved during training are rounded to the precision in which
        the run computed.

        Args:
            run: the content of run.json.
            model: the GPT with the configuration of the run; None is allowed for weights at the end of training.

        Raises:
            ValueError: a file is not what was written, or a parameter is missing.
        """
        if self.step is None:
            self.verify_hash()
            return _load(self.path)
        import torch

        from model.shard import shard, unshard

        pieces: dict[str, dict[tuple[int, int], dict[int, Any]]] = {}  # parameter -> (rank, size) -> {start: piece}
        for name, checksum in read_manifest(self.path)["files"].items():
            path = safe_files.path_inside(self.path, name)
            if complaint := safe_files.describe_damage(path, checksum):
                raise safe_files.Damaged(f"{path} is damaged: {complaint}")
            for key, piece in _load(path).items():
                cut = rundir.FragmentKey.parse(key)
                pieces.setdefault(cut.parameter, {}).setdefault((cut.rank, cut.size), {})[cut.start] = piece
        precision = getattr(torch, PRECISIONS.get(run["config"]["train"]["precision"], "float32"))
        state = {}
        for name, like in model.named_parameters():
            cuts = pieces.get(name, {})
            parts = []
            for rank, size in sorted(cuts):
                flat = torch.cat([cuts[rank, size][start] for start in sorted(cuts[rank, size])])
                shape = shard(name, torch.empty(like.shape, device="meta"), rank, size).shape
                if flat.numel() != shape.numel() or size != len(cuts):
                    raise ValueError(f"{self.path} holds only a part of {name}, or holds it in another shape")
                parts.append(flat.view(shape))
            if not parts:
                raise ValueError(f"{self.path} lacks {name}")
            state[name] = unshard(name, parts).to(precision)
        return state


def weights_to_evaluate(directory: Path) -> list[Weights]:
    """The weights of a run that can be evaluated, in the order of training. Those at the end are included if the run is
    finished. Weights whose checkpoint.json is damaged are left out; a continued training writes them again.
    `directory`: the run directory. Raises ValueError where the file `done` is damaged, or a path leads out of the
    directory."""
    saved = []
    for folder in rundir.checkpoints(directory / rundir.CHECKPOINTS, "weights"):
        safe_files.path_inside(directory, str(folder.relative_to(directory) / rundir.CHECKPOINT))
        try:
            manifest = read_manifest(folder)
            saved.append(Weights(folder, manifest["step"], manifest["tokens"]))
        except (safe_files.Damaged, KeyError):
            continue
    saved.sort(key=lambda weights: weights.step or 0)
    if rundir.read_done(directory) is None:
        return saved
    safe_files.path_inside(directory, rundir.WEIGHTS)
    return [*saved, Weights(directory / rundir.WEIGHTS)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of checkpoint.json in a folder of weights. A file without a hash of its own content is accepted,
    since earlier versions wrote it so. Raises Damaged where the file is missing, or differs from its hash."""
    manifest = safe_files.read_json(
        folder / rundir.CHECKPOINT, ["step", "tokens", "files"], {"step": int, "files": dict}
    )
    if manifest is None or "sha256" in manifest:
        return rundir.read_checkpoint(folder)
    return manifest


def _load(path: Path) -> dict[str, Any]:
    """Load a safetensors file as {name: tensor}. Raises Damaged where the file is not a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise safe_files.Damaged(f"{path} is damaged: {error}") from None


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """The sha256 of a file, remembered as long as its size (in bytes) and its time of change (in ns) stay the same."""
    return safe_files.sha256(path)
