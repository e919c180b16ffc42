"""Every setting that is part of what a run is changes what is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ablations.config import KEYS, resolve
from model import proof
from tests.tiny_run import TINY, in_process, same_initial_weights, study

# at so low a learning rate the loss is noise, and above the median of the steps before it soon
SPIKES = {"train.lr": 1e-5, "train.spike": 1e-4, "train.rollbacks": 1, "train.skip": 2, "layout.save_every": 2}
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {  # key -> another value, and what must be set for it to matter
    "seed": (2, {}),
    "model.layers": (1, {}),
    "model.hidden": (64, {}),
    "model.heads": (4, {}),
    "model.seq": (16, {}),
    "model.vocab": (384, {}),
    "model.pos": ("rotary", {}),
    "model.act": ("swiglu", {}),
    "model.norm": ("rmsnorm", {}),
    "model.block": ("parallel", {}),
    "model.qkv_bias": (False, {}),
    "model.linear_bias": (False, {}),
    "model.tied": (False, {}),
    "model.dropout": (0.1, {}),
    "model.attn_dropout": (0.1, {}),
    "model.embnorm": (True, {}),
    "model.objective": ("prefix", {}),
    "model.mask_rate": (0.3, {"model.objective": "mlm"}),
    "model.ffn_width": (96, {}),
    "model.sumnorm": (True, {}),
    "model.final_norm": (False, {}),
    "model.head_transform": ("bert", {}),
    "model.output_bias": (True, {}),
    # divided by 1 and 2 and multiplied back, fp16 is what it was: the third layer's scores are rounded
    "model.qk_scaling": (True, {"train.precision": "fp16", "model.layers": 3}),
    "model.vocab_multiple": (384, {}),
    "model.rotary_base": (100.0, {"model.pos": "rotary"}),
    "model.init_std": (0.03, {}),
    "model.norm_eps": (1e-3, {}),
    "data.corpus": ("OTHER", {}),
    "data.tokenizer": ("OTHER", {}),
    "data.tokenizer_kind": ("unigram", {}),
    "data.dedup": ("none", {"data.corpus": "OTHER"}),  # which holds copies
    "data.quality": ("gopher", {}),
    "data.decontaminate": ("TASKS", {}),  # a folder with a document of the corpus
    "data.substring": (20, {"data.corpus": "OTHER"}),  # which holds copies
    "data.compress": (0.5, {}),
    "data.order": ("short-first", {}),
    "data.allow_errors": (1, {"data.corpus": "BROKEN"}),  # which holds a bad line
    "train.tokens": (12 * 4 * 32, {}),
    "train.batch": (8, {}),
    "train.ramp": ([2, 1, 12], {"layout.micro_batch": 1}),
    "train.ramp_share": (0.9, {"layout.micro_batch": 1, "train.ramp": [2, 1], "train.ramp_share": 0.3}),
    "train.budget": ("1s", {}),
    "train.schedule": ("linear", {}),
    "train.lr": (2e-3, {}),
    "train.min_lr": (0.5, {}),
    "train.decay_tokens": (48 * 4 * 32, {}),
    "train.warmup": (0.5, {}),
    "train.beta1": (0.8, {}),
    "train.beta2": (0.9, {}),
    "train.eps": (1e-3, {}),
    "train.weight_decay": (0.5, {}),
    "train.decay_embnorm": (True, {"model.embnorm": True}),
    "train.clip": (0.1, {}),
    "train.precision": ("bf16", {}),
    "train.loss_scale_power": (8, {"train.precision": "fp16"}),
    "train.loss_scale_window": (4, {"train.precision": "fp16"}),
    "train.loss_scale_hysteresis": (1, {"train.precision": "fp16", "train.loss_scale_power": 32}),
    "train.loss_scale_min": (2**31, {"train.precision": "fp16", "train.loss_scale_power": 32}),
    "train.spike": (1e-4, {"train.lr": 1e-5}),
    "train.rollbacks": (2, SPIKES),
    "train.skip": (3, SPIKES),
    "train.divergence": (1000.0, {"model.init_std": 1.0}),  # so wide a start counts as divergence by default
}


# Of the model and of the data the first steps show it; a schedule, a spike or a loss scale takes longer.
FEW_STEPS = {"train.tokens": 4 * 4 * 32}
PARTS = {"seed": FEW_STEPS, "model.": FEW_STEPS, "data.": FEW_STEPS, "train.": {}}


def test_every_setting_of_a_run_has_a_change() -> None:
    assert CHANGES.keys() == {k for k in KEYS if not k.startswith(("layout.", "eval.")) and k != "size"}
    assert all(key.startswith(tuple(PARTS)) for key in CHANGES)


@pytest.mark.parametrize("part", PARTS)
def test_no_switch_is_dead(
    part: str, corpus: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key that is part of what a run is changes what is trained. A new key must be added to CHANGES.

    Initial weights are the same in all runs, so that none of them passes by other weights alone.
    """
    from launch.manifest import Diverged, RunFailed

    same_initial_weights(monkeypatch)
    prove = proof.prove_factors
    proofs: dict[str, Any] = {}  # of the models that these runs train: most of them train the same one

    def proved_once(model: Any) -> Any:
        of_model = f"{model.cfg} {model.embed.weight.dtype}"
        if of_model not in proofs:
            proofs[of_model] = prove(model)
        return proofs[of_model]

    monkeypatch.setattr(proof, "prove_factors", proved_once)

    other, broken, tasks = tmp_path / "other.jsonl", tmp_path / "broken.jsonl", tmp_path / "tasks"
    lines = Path(corpus).read_text().splitlines(keepends=True)
    other.write_text("".join(lines[::2] + lines[:20:2]))
    broken.write_text("".join([*lines, "no JSON"]))
    tasks.mkdir()
    (tasks / "test.jsonl").write_text("".join(lines[:20]))
    paths = {"OTHER": str(other), "BROKEN": str(broken), "TASKS": str(tasks)}
    results: dict[str, Any] = {}

    def run(setting: dict[str, Any]) -> Any:
        key = json.dumps(setting, sort_keys=True)
        if key not in results:
            run = resolve((TINY | PARTS[part] | {"data.corpus": corpus, "data.tokenizer": corpus} | setting).items())
            cell = dataclasses.replace(study(corpus, tmp_path).cells[0], run=run, dir=tmp_path / str(len(results)))
            cell.dir.mkdir()
            try:
                results[key] = in_process(cell, store)
            except Diverged as error:
                results[key] = f"diverged: {error}"
            except RunFailed as error:
                assert "not JSON" in str(error)
                results[key] = "refused"
        return results[key]

    for key, (value, needs) in CHANGES.items():
        if not key.startswith(part):
            continue
        needs = {k: paths.get(v, v) if isinstance(v, str) else v for k, v in needs.items()}
        value = paths.get(value, value) if isinstance(value, str) else value
        assert run(needs) != run(needs | {key: value}), f"{key} changes nothing"
