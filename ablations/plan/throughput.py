"""The seconds of one optimizer step of a transformer on a cluster, predicted as a weighted sum of physical terms.

Each term is the time of a part of the step at the rates of the hardware's data sheet: matrix products at the peak,
elementwise work at the memory's bandwidth, communication at the bandwidth of the links. The weight of a term says how
much slower a software stack is. The weights are fitted to published step times (ablations/plan/calibrate.py). The
interval of a prediction comes from the errors on rows that were held out of the fit.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.plan.hardware import GPU
from model.config import ModelConfig

CALIBRATION = Path(__file__).parent / "calibration.json"

TERMS = ("matmul", "small", "attention", "traffic", "tensor", "network", "launch", "update")

SATURATED = 4096 * 3584  # rows x columns of a matrix product at which `small` equals `matmul`; an arbitrary unit
LAUNCH_SECONDS = 1e-3  # to launch the kernels of a layer for one micro-batch; the unit of `launch`, which is fitted
# The number of times that plain attention reads or writes the scores, counted in Megatron's kernels, with dropout
PLAIN_PASSES = 18.5
PLAIN_PASSES_AGAIN = 6.5  # further ones where the scores are recomputed
TRAFFIC = 30  # reads and writes of a layer's hidden state; the unit of `traffic`, which is fitted
LOGIT_PASSES = 6  # reads and writes of the logits, forward and backward
# The factor on a step's time where the heads per rank are no multiple of 4: 138.72 s, against 120.18 s with 64 heads
# (both 72 x 14336, tensor parallel 8; bigscience chronicles-prequel.md, 23 Feb 2022). These rows are not in the fit.
UNEVEN_HEADS = 138.72 / 120.18


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model that determine its speed. `ffn`: the inner width of an MLP; `matrices`: the number of
    weight matrices of an MLP, which is 2, or 3 where it is gated."""

    layers: int
    hidden: int
    heads: int
    seq: int
    vocab: int  # rows of the embedding
    ffn: int
    matrices: int = 2

    @classmethod
    def of(cls, cfg: ModelConfig) -> "Shape":
        """The shape of a model of our own."""
        return cls(cfg.layers, cfg.hidden, cfg.heads, cfg.seq, cfg.padded_vocab, cfg.mlp_width, cfg.mlp_matrix_count)

    @property
    def layer_weights(self) -> int:
        """The number of weights in the matrices of one layer, attention and MLP."""
        return 4 * self.hidden**2 + self.matrices * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """The number of parameters with biases, norms and tied embeddings, and without learned positions."""
        biases = 9 * self.hidden + (self.matrices - 1) * self.ffn
        return self.layers * (self.layer_weights + biases) + self.vocab * self.hidden + 2 * self.hidden

    def flops_per_token(self, recompute: bool = False) -> float:
        """The FLOPs of training on one token by Megatron's formula, as in model/count.py. `recompute`: whether
        activations are recomputed, so that the forward pass of the layers counts twice."""
        layers = self.layers * (self.layer_weights + 2 * self.seq * self.hidden)
        return (8 if recompute else 6) * layers + 6 * self.vocab * self.hidden


@dataclass(frozen=True)
class Layout:
    """The parallel layout of a training step. `gpus`: the total number of GPUs. `tp`, `pp`: the tensor- and
    pipeline-parallel sizes. `batch`: the sequences of a step. `micro_batch`: the sequences of one pass of a replica.
    `embedding_slots`: whether each of the two embeddings counts as a layer when layers are assigned to pipeline
    stages."""

    gpus: int
    tp: int
    pp: int
    micro_batch: int
    batch: int
    zero: int  # 1, 2 (both: the optimizer is sharded), or 3 (weights too)
    recompute: bool
    embedding_slots: bool = False

    @property
    def dp(self) -> int:
        """The number of data-parallel replicas."""
        return self.gpus // (self.tp * self.pp)

    @property
    def micro_batches(self) -> float:
        """The number of micro-batches of each replica in one step."""
        return self.batch / (self.dp * self.micro_batch)


def step_time_terms(shape: Shape, layout: Layout, gpu: GPU, flash: bool) -> list[float]:
    """The seconds of each term of one step, in the order of TERMS, on the busiest pipeline stage and at the rates of
    the data sheet. `flash`: whether attention is one kernel that does not write the scores to memory."""
    tp, pp, hidden = layout.tp, layout.pp, shape.hidden
    rows = layout.micro_batch * shape.seq
    passes = 4 if layout.recompute else 3  # the backward pass is two products for each of the forward pass
    layers = (shape.layers + 2) / pp if layout.embedding_slots else math.ceil(shape.layers / pp)
    with_output = not layout.embedding_slots  # the last stage has the output matrix besides its layers

    matmul = layers * 2 * rows * shape.layer_weights / tp * passes / gpu.peak
    if with_output:
        matmul += 6 * rows * hidden * shape.vocab / tp / gpu.peak
    scores = 4 * rows * shape.seq * hidden / tp
    if flash:  # half of the scores are masked; the backward pass computes them again
        attention = layers * scores / 2 * (passes + 0.5) / gpu.peak
    else:
        matmul += layers * scores * passes / gpu.peak
        score_passes = PLAIN_PASSES + PLAIN_PASSES_AGAIN * layout.recompute
        attention = layers * score_passes * rows * shape.seq * shape.heads / tp * 2 / gpu.bandwidth
    small = matmul * SATURATED / (rows * hidden / tp)
    traffic = layers * TRAFFIC * rows * hidden * 2 / gpu.bandwidth
    if with_output:
        traffic += LOGIT_PASSES * rows * shape.vocab / tp * 2 / gpu.bandwidth
    reductions = 4 + 2 * layout.recompute
    tensor = layers * reductions * rows * hidden * 2 * 2 * (tp - 1) / tp / gpu.group_bandwidth(tp)
    launch = layers * LAUNCH_SECONDS * passes / 4

    micro_batches = layout.micro_batches
    fill = (micro_batches + pp - 1) / micro_batches  # the pipeline fills and drains once a step
    weights = (layers * shape.layer_weights + shape.vocab * hidden * (1 if pp == 1 else 0.5)) / tp
    bandwidth = gpu.group_bandwidth(layout.gpus) if layout.gpus <= gpu.node else gpu.network
    network = 0.0
    if pp > 1:
        network += 2 * rows * hidden * 2 / gpu.network * micro_batches * fill
    if layout.zero == 3:
        network += 6 * weights / bandwidth * micro_batches
    else:
        network += 4 * weights * (layout.dp - 1) / layout.dp / bandwidth
    update = weights * (4 + 16 / layout.dp) / gpu.bandwidth
    repeated = [part * micro_batches * fill for part in (matmul, small, attention, traffic, tensor)]
    uneven = UNEVEN_HEADS if not flash and shape.heads // tp % 4 else 1.0
    return [uneven * part for part in (*repeated, network, launch * micro_batches * fill, update)]


@dataclass(frozen=True)
class PredictedStep:
    """The predicted seconds of a step. `low`, `high`: the 80% interval, from errors on held-out rows; `basis`: the
    measurements on which the prediction is based, as text; `parts`: {name in TERMS: seconds}."""

    seconds: float
    low: float
    high: float
    basis: str
    parts: dict[str, float]

    def scaled(self, factor: float, spread: float, basis: str) -> "PredictedStep":
        """The prediction with all times multiplied by `factor`. The new interval is from seconds / `spread` to seconds
        x `spread`. `basis`: the new basis, as text."""
        seconds = self.seconds * factor
        parts = {name: part * factor for name, part in self.parts.items()}
        return PredictedStep(seconds, seconds / spread, seconds * spread, basis, parts)


@functools.cache
def calibration() -> dict[str, Any]:
    """The content of calibration.json: the fitted constants of the speed and memory models, and their errors on
    held-out published rows. `python -m ablations.plan.calibrate --write` writes the file."""
    return dict(json.loads(CALIBRATION.read_text()))


# {stack: the accelerators with published rows}. No published rows are of our own engine; llm-foundry's stack (flash
# attention, fused kernels, no recomputation where memory suffices) is the most similar.
MEASURED = {
    "Megatron-DeepSpeed": ("v100-16", "v100-32", "a100-40", "a100-80"),
    "llm-foundry": ("a100-40", "a100-80", "h100"),
}
# The factor by which the interval is widened on each side for a GPU without published rows. Predicting h100 by the
# weights of a100-80 was off by 18% in the median (measured by calibrate.py); twice that is taken.
UNMEASURED_SPREAD = 1.36
MIN_HIDDEN = 768  # the least hidden size in published rows; for smaller ones the interval is widened once more


def predict_step(shape: Shape, layout: Layout, gpu: GPU, stack: str = "") -> PredictedStep:
    """Predict the seconds of one optimizer step.

    Args:
        shape: the dimensions of the model.
        layout: the parallel layout of the step.
        gpu: the kind of GPU.
        stack: the software whose published speed is used. "llm-foundry" is the most similar to our engine;
            "Megatron-DeepSpeed" is for pipelines with plain attention, as in BigScience's runs. "":
            "Megatron-DeepSpeed" on V100s, for which llm-foundry has no rows, else "llm-foundry".
    """
    fits = calibration()
    is_v100 = gpu.similar == "v100"
    stack = stack or ("Megatron-DeepSpeed" if is_v100 else "llm-foundry")
    if stack == "Megatron-DeepSpeed":
        measured_gpu = "v100" if is_v100 else "a100-80"
    else:
        measured_gpu = gpu.similar
    fit = fits[f"{stack}, {measured_gpu}"]
    weights = dict(fit["weights"])
    if stack != "Megatron-DeepSpeed":  # llm-foundry's rows have no tensor parallelism
        weights["tensor"] = fits["Megatron-DeepSpeed, a100-80"]["weights"]["tensor"]
    values = step_time_terms(shape, layout, gpu, flash=stack != "Megatron-DeepSpeed")
    parts = {name: weights[name] * value for name, value in zip(TERMS, values, strict=True)}
    seconds = sum(parts.values())
    low, high = fit["interval"]
    basis = f"{stack}'s published rows on {measured_gpu}"
    if gpu.name not in MEASURED[stack]:
        low, high = low / UNMEASURED_SPREAD, high * UNMEASURED_SPREAD
        basis += f"; none on {gpu.name}"
    if shape.hidden < MIN_HIDDEN:
        low, high = low / UNMEASURED_SPREAD, high * UNMEASURED_SPREAD
        basis += f"; none as narrow as {shape.hidden}"
    return PredictedStep(seconds, seconds * low, seconds * high, basis, parts)
