"""Candidate model shapes (layers, width, heads) for a target size on a cluster: the shapes that BigScience's rules of
thumb of 2022 allow, the fastest first.

The rules (chronicles-prequel.md):

* The width fills whole tiles of a matrix product, and the number of heads divides it.
* All pipeline stages have equally many layers, where each of the two embeddings counts as a layer.
* The ranks divide the batch evenly.
* The ratio of width to depth is in the range of existing models.

The depth that Levine et al. 2020 advise is shown, but is no rule. ablations/plan/throughput.py predicts the speed of
every candidate, with plain attention and recomputation as in BigScience's runs. Every candidate fits into memory by
ablations/plan/pipeline_memory.py.
"""

import math
from dataclasses import dataclass

from ablations.plan.hardware import GPU
from ablations.plan.pipeline_memory import memory_verdict, peak_memory
from ablations.plan.throughput import Layout, PredictedStep, Shape, predict_step
from ablations.values import ConfigError

TILE = 1024  # 8 x 128: with up to 8 tensor parallel ranks, the width on each fills whole tiles of a matrix product
ASPECT_RATIOS = (100, 210)  # hidden / layers: from GPT-3's 128 to Megatron-Turing's 195, and a little beyond
HEAD_DIMS = (96, 104, 112, 128, 144, 160, 192, 208, 224)
HEAD_LIMIT = 128  # larger heads were rejected as oversized by BigScience; the widest of GPT-3, PaLM and Gopher is 256
MOST_HEADS = 128  # BigScience's most; more are allowed where heads would otherwise be larger than HEAD_LIMIT
TENSOR_PARALLEL_SIZES = (4, 8)  # within a node of 8
MICRO_BATCHES = (1, 2, 4)
VOCAB = 250_880  # BLOOM's
SEQ = 2048
BATCH = 2048  # sequences of a step


@dataclass(frozen=True)
class ShapeCandidate:
    """A model shape with its fastest layout, the predicted step time, and the memory per GPU in GiB, `gib`."""

    shape: Shape
    layout: Layout
    step: PredictedStep
    gib: float
    rejected: str  # the reason against it; "" where there is none

    @property
    def head_dim(self) -> int:
        return self.shape.hidden // self.shape.heads

    @property
    def label(self) -> str:
        """The shape as text, "layers x width x heads"."""
        s = self.shape
        return f"{s.layers} x {s.hidden} x {s.heads}"


def levine_depth(parameters: float) -> float:
    """The number of layers L that Levine et al. 2020 advise for N parameters: the solution of N = 12 L e^(2 x 5.039)
    e^(2 x 0.0555 L)."""
    from scipy.special import lambertw

    return float(lambertw(2 * 0.0555 * parameters / (12 * math.exp(2 * 5.039))).real / (2 * 0.0555))


def candidate_shapes(low: float, high: float, gpu: GPU, gpus: int, per_node: int = 8) -> list[ShapeCandidate]:
    """The model shapes with `low` to `high` parameters that the rules of thumb allow and that fit into memory, each in
    its fastest layout. The shape with the shortest step comes first.

    Args:
        low: the least number of parameters.
        high: the largest number of parameters.
        gpu: the kind of GPU.
        gpus: the number of GPUs.
        per_node: the number of GPUs of a node; a tensor-parallel group stays within a node.

    Raises:
        ConfigError: the range is empty, or no shape is left; the message says why.
    """
    if not 0 < low < high:
        raise ConfigError(f"shapes between {low:g} and {high:g} parameters: the first must be the smaller, above 0")
    best: dict[tuple[int, int, int], ShapeCandidate] = {}
    tried = 0
    for tp in TENSOR_PARALLEL_SIZES:
        for pp in range(1, 33):
            if tp > per_node or gpus % (tp * pp):
                continue
            dp = gpus // (tp * pp)
            for hidden in range(4 * TILE, 32 * TILE, TILE):
                for slots in range(1, 40):
                    layers = slots * pp - 2  # each of two embeddings takes the place of a layer
                    if layers < pp or not ASPECT_RATIOS[0] <= hidden / layers <= ASPECT_RATIOS[1]:
                        continue
                    if not low <= Shape(layers, hidden, 1, SEQ, VOCAB, 4 * hidden).parameters <= high:
                        continue
                    most_heads = max(MOST_HEADS, hidden // HEAD_LIMIT)
                    for head_dim in HEAD_DIMS:
                        heads, remainder = divmod(hidden, head_dim)
                        if remainder or heads % tp or heads // tp % 4 or heads > most_heads:
                            continue
                        shape = Shape(layers, hidden, heads, SEQ, VOCAB, 4 * hidden)
                        for micro in MICRO_BATCHES:
                            tried += 1
                            if BATCH % (dp * micro):
                                continue
                            layout = Layout(gpus, tp, pp, micro, BATCH, 1, True, True)
                            gib = peak_memory(shape, layout)
                            if memory_verdict(gib, gpu) != "fits":
                                continue
                            step = predict_step(shape, layout, gpu, "Megatron-DeepSpeed")
                            rejected = f"heads of {head_dim}" if head_dim > HEAD_LIMIT else ""
                            candidate = ShapeCandidate(shape, layout, step, gib, rejected)
                            key = (layers, hidden, heads)
                            if key not in best or step.seconds < best[key].step.seconds:
                                best[key] = candidate
    if not best:
        reason = "no layout fits into memory and divides the batch" if tried else "no shape keeps to the rules"
        raise ConfigError(
            f"no shape of {low / 1e9:,.0f} to {high / 1e9:,.0f} billion parameters on {gpus} {gpu.name}: {reason}"
        )
    return sorted(best.values(), key=lambda candidate: candidate.step.seconds)


def reasons_for_shape(candidate: ShapeCandidate) -> list[str]:
    """The rules of thumb that a candidate shape follows, a sentence for each."""
    shape, layout = candidate.shape, candidate.layout
    rank_width = shape.hidden // layout.tp
    tile = next(size for size in (256, 128, 64, 1) if rank_width % size == 0)
    stages = (shape.layers + 2) // layout.pp
    return [
        f"{shape.layers} layers and two embeddings are {layout.pp} pipeline stages of {stages}",
        f"width {shape.hidden} is {rank_width} on each of {layout.tp} tensor parallel ranks, whole tiles of {tile}",
        f"{shape.heads} heads of {candidate.head_dim}, {shape.heads // layout.tp} on a rank: a multiple of 4",
        f"width / depth {shape.hidden / shape.layers:.0f}; "
        f"Levine's law has {levine_depth(shape.parameters):.0f} layers",
        f"{candidate.gib:.0f} GiB on each GPU at micro-batch {layout.micro_batch}",
    ]
