"""The pretrained model that is fine-tuned: a run of this project, or a Hugging Face checkpoint."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations import rundir, safe_files
from eval import location

CHECKPOINT_FILES = (".safetensors", ".bin", ".json", ".txt", ".model")  # weights, settings and tokenizers


class PretrainedModel:
    """The model to fine-tune: a run of this project, or a Hugging Face checkpoint. The object can be pickled for worker
    processes.

    Args:
        run: the run directory; None for a checkpoint.
        external: the folder of the checkpoint; None for a run.
        store: the folder of prepared data, which has the run's tokenizer; None: that of the run's OUT folder.

    Raises:
        ValueError: the run is not finished or is damaged, its store is missing, or the folder is not a checkpoint.
    """

    def __init__(self, run: Path | None, external: Path | None, store: Path | None):
        self.run, self.external, self.store = run, external, store
        if external and not (external / "config.json").is_file():
            raise ValueError(f"{external} has no config.json: it is no checkpoint of Hugging Face's")
        if run:
            self.record = location.read_run_json(run)
            if rundir.read_done(run) is None:
                raise ValueError(f"{run} has no {rundir.DONE}: only a finished run can be fine-tuned")
            self.store = location.data_store(run, store)

    def sha256(self) -> str:
        """A hash that identifies the model: the sha256 of a run's weights, or one over all files of a checkpoint,
        tokenizer included. Raises ValueError where the weights of the run are damaged."""
        if self.run:
            from eval.weights import Weights

            weights = Weights(self.run / rundir.WEIGHTS)
            if note := weights.verify_hash():
                print(f"note: {note}", file=sys.stderr)
            return weights.sha256
        assert self.external
        files = [path for path in sorted(self.external.iterdir()) if path.suffix in CHECKPOINT_FILES]
        return safe_files.json_digest([[path.name, safe_files.sha256(path)] for path in files if path.is_file()])

    def pooling(self) -> str:
        """The default pooling of the classifier: "last" for a decoder, "first" for an encoder."""
        from eval.finetune import classifier

        if self.run:
            return "last" if self.record["config"]["model"]["objective"] == "causal" else "first"
        assert self.external
        return "last" if classifier.is_causal(self.external) else "first"

    def longest(self) -> int | None:
        """The longest input that the model can read, in tokens; None: unlimited."""
        if self.run:
            model = self.record["config"]["model"]
            return model["seq"] if model["pos"] == "learned" else None
        assert self.external
        config = safe_files.read_json(self.external / "config.json") or {}
        return config.get("max_position_embeddings") or config.get("n_positions")

    def encoder(self, longest: int) -> Callable[[str, str], list[int]]:
        """The function (text_a, text_b) -> token ids that makes the inputs of the classifier. `longest`: the number of
        tokens to which inputs are truncated."""
        from eval.finetune import classifier

        if self.run:
            assert self.store
            return classifier.input_encoder(location.load_tokenizer(self.run, self.record, self.store), longest)
        assert self.external
        return classifier.huggingface_input_encoder(self.external, longest)

    def backbone(self, setting: Any, seed: int) -> Any:
        """A new backbone (classifier.py) with the pretrained weights.

        Args:
            setting: the hyperparameters, a `train.Setting`. The dropout of a run's model is set by them; a Hugging Face
                model keeps that of its own configuration.
            seed: the seed under which a run's model is created, before the pretrained weights are loaded.
        """
        from eval.finetune import classifier

        if not self.run:
            assert self.external
            return classifier.HuggingFaceBackbone(self.external)
        from eval.weights import Weights
        from model.gpt import GPT

        weights = Weights(self.run / rundir.WEIGHTS)
        cfg = location.model_config(self.run, self.record)
        weights.check_size(cfg)
        cfg = replace(cfg, dropout=setting.dropout, attn_dropout=setting.attn_dropout)
        model = GPT(cfg, seed=seed)
        model.load_state_dict(weights.state_dict(self.record, model), strict=True)
        return classifier.GPTBackbone(model.float())
