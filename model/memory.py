"""The memory of a training step on one rank, in bytes of tensors, by formula and without torch. A test compares it with
real steps.

Memory peaks at one of a few moments of a step: the loss, the start or end of the backward pass, the reduction of
gradients, the update. The estimate is the largest of these. It leaves out all that is not a tensor: the interpreter,
libraries, kernels' scratch space, gaps of the allocator.
"""

from model.config import ModelConfig
from model.count import count_parameters

MAX_BUCKET_ELEMENTS = 500_000_000  # elements: DeepSpeed's, and launch/engine.py makes it no larger than the model
ROWS_CPU, SOFTMAX_CPU = 512, 128  # rows of logits at a time, and rows in fp32: model/kernels/cross_entropy.py
# position schemes that add nothing to the scores of attention; any other is counted with a bias for each head
UNBIASED = ("none", "learned", "rotary", "sinusoidal", "scaled-sinusoidal")
QUERIES = 128  # queries at a time on a CPU: QUERIES_AT_ONCE of model/attention.py


def estimate_memory(
    cfg: ModelConfig,
    micro_batch: int,
    precision: str,
    zero: int,
    ranks: int,
    accumulate: int = 1,
    gpu: bool = False,
    tp: int = 1,
    recompute: bool = False,
) -> dict[str, int]:
    """Estimate the bytes of tensors on one rank at the peak of a training step.

    Args:
        cfg: the model's configuration.
        micro_batch: sequences of a micro-batch.
        precision: bf16, fp8 or fp16 (with fp32 masters), or fp32.
        zero: ZeRO stage, 1 or 2.
        ranks: the ranks among which ZeRO divides the optimizer: those that hold the same part of the model.
        accumulate: micro-batches per optimizer step.
        gpu: whether the step is on a GPU, whose kernels need other memory than those of a CPU.
        tp: how many ranks hold one copy of the model together. Above 1 the formula was not compared with measurements.
        recompute: whether only each layer's input is stored, and the layer computed again in the backward pass. For
            plans only; training here does not do it.

    Returns:
        Bytes by kind: {"weights", "optimizer" (fp32 masters and two moments, divided by `ranks`), "gradients" (with
            DeepSpeed's buffers), "activations", "logits", "total"}.
    """
    half = precision != "fp32"
    width = 2 if half else 4
    count, rows, vocab = count_parameters(cfg, tp), micro_batch * cfg.seq, cfg.padded_vocab // tp
    fixed = {"weights": width * count, "optimizer": 12 * count // ranks}
    if precision == "fp8":  # in eight bits and transposed, from one update to the next: model/fp8.py
        fixed["weights"] += 2 * cfg.layers * (4 * cfg.hidden**2 + cfg.mlp_matrix_count * cfg.hidden * cfg.mlp_width)
    stored, working = activation_bytes(cfg, micro_batch, precision, gpu, tp, recompute)
    logits, work, summed = loss_bytes(cfg, micro_batch, half, gpu, tp)
    embedding = vocab * cfg.hidden * width  # the output matrix's gradient, which waits for that of the token lookup
    unit = rows * cfg.hidden * width
    before, first, last, reduction, update = gradient_bytes(cfg, precision, zero, ranks, accumulate, gpu, tp)
    moments = [
        {"gradients": before, "activations": stored + working},
        {"gradients": before + summed, "activations": stored + 2 * unit, "logits": logits + work},
        # what the output matrix reads, and its gradient, before and after scaling
        {"gradients": before + summed + embedding, "activations": stored + 3 * unit, "logits": 0 if summed else logits},
        {"gradients": first + embedding, "activations": stored + working},
        {"gradients": last + embedding},
        {"gradients": reduction},
        {"gradients": update},
    ]
    peak = max(moments, key=lambda moment: sum(moment.values()))
    held = {"weights": 0, "optimizer": 0, "gradients": 0, "activations": 0, "logits": 0} | fixed | peak
    return held | {"total": sum(held.values())}


def loss_bytes(cfg: ModelConfig, micro_batch: int, half: bool, gpu: bool, tp: int) -> tuple[int, int, int]:
    """Bytes while the loss of `micro_batch` sequences is computed.

    Args:
        cfg: the model's configuration.
        micro_batch: sequences of a micro-batch.
        half: whether logits have 16 bits.
        gpu: whether the step is on a GPU.
        tp: how many ranks hold one copy of the model together.

    Returns:
        (logits, working memory, the fp32 sum of the output matrix's gradients).
    """
    predicted, vocab, width = micro_batch * cfg.predicted_per_sequence, cfg.padded_vocab // tp, 2 if half else 4
    if gpu or tp > 1:  # all rows at once, in one compiled kernel or in megatron-core's, which keeps fp32 too
        fp32_copy = 4 if half and tp > 1 else 0
        return predicted * vocab * (width + fp32_copy), 0, 0
    logits = min(predicted, ROWS_CPU) * vocab * width
    matrix = vocab * cfg.hidden  # a block of rows gives a gradient, which is added to the sum
    softmax = min(predicted, SOFTMAX_CPU) * vocab * 4 if half else 0  # in fp32; fp32 logits are overwritten instead
    return logits, max(softmax, matrix * width), 4 * matrix


def gradient_bytes(
    cfg: ModelConfig, precision: str, zero: int, ranks: int, accumulate: int, gpu: bool, tp: int = 1
) -> tuple[int, int, int, int, int]:
    """Bytes of gradients and of DeepSpeed's buffers at five moments of a step. The formula follows the source of
    DeepSpeed 0.19.8 and was compared with measurements. Arguments as for `estimate_memory`.

    Returns:
        Bytes (before the last backward pass, at its start, at its end, during the reduction over ranks, at the update).
    """
    precision = "bf16" if precision == "fp8" else precision
    count, more = count_parameters(cfg, tp), accumulate > 1
    bucket, largest = min(MAX_BUCKET_ELEMENTS, count), cfg.padded_vocab // tp * cfg.hidden
    part = 4 * count // ranks  # this rank's share in fp32
    if precision == "bf16" and zero == 1:  # fp32 sums of all gradients, on a GPU always; reduced as a copy in bf16
        sums, rank_gradients = 4 * count, 2 * count
        if gpu and tp == 1:  # launch/bf16.py: each micro-batch's gradients go into the sums, which are reduced in place
            return sums, sums, sums + rank_gradients, sums, sums
        before = (sums if gpu or more else 0) + (rank_gradients if more else 0)
        joined = 4 * count if count < MAX_BUCKET_ELEMENTS else 0  # a group above the bucket is not joined with the next
        copies = max(joined + 2 * count, 4 * largest) if ranks > 1 else 0  # one rank has nothing to reduce
        return before, before, sums + rank_gradients, sums + rank_gradients + copies, sums + rank_gradients
    if precision == "bf16":  # into a bucket; a copy of the bucket is reduced, and summed into this rank's share
        before = part if more else 0
        return before, before + 2 * bucket, before + 2 * bucket, 4 * bucket + part + min(4 * largest, part), part
    # fp16 has no sums in fp32, and at the update its gradients and the bucket stand beside their fp32 copy
    half = precision != "fp32"
    width = 2 if half else 4
    if zero == 1:  # gradients first, the bucket beside them
        before = width * (count + bucket) if more else 0  # both are kept from one micro-batch to the next
        both = width * (count + bucket)
        at_update = width * bucket + part + (width * count if half else 0)
        return before, before or width * bucket, both, both, at_update
    rank_gradients, bucket = width * count // ranks, width * bucket
    before = rank_gradients if more else 0
    joined = bucket if ranks > 1 else 0
    at_update = rank_gradients + part + (bucket if half else 0)
    return before, before + bucket, before + bucket, before + bucket + joined + rank_gradients, at_update


def activation_bytes(
    cfg: ModelConfig, micro_batch: int, precision: str, gpu: bool, tp: int = 1, recompute: bool = False
) -> tuple[int, int]:
    """Bytes of activations of `micro_batch` sequences. Arguments as for `estimate_memory`.

    Returns:
        (the activations stored for the backward pass, the additional working memory of one layer).
    """
    B, T, D, F, H = micro_batch, cfg.seq, cfg.hidden, cfg.mlp_width // tp, cfg.heads // tp
    width = 4 if precision == "fp32" else 2
    unit, inner, scores = B * T * D * width, B * T * F * width, B * H * T * T * width
    rank_unit = unit // tp  # of this rank's heads
    biased, rotary = cfg.pos not in UNBIASED, cfg.pos == "rotary"
    if gpu and not cfg.attn_dropout and not cfg.qk_scaling:  # fused: q, k, v, the output, and a number for each row
        attention, working = (4 + 2 * rotary) * rank_unit + B * H * T * 4, 3 * rank_unit
    elif precision != "fp32":  # plain: of the scores, those that blocks of queries see; one block is at work
        block = min(QUERIES, T) if cfg.objective == "causal" else T
        pairs = sum(min(block, T - start) * min(start + block, T) for start in range(0, T, block))
        dropped = 1 if cfg.attn_dropout else 0  # a byte for each probability
        attention = 4 * rank_unit + B * H * pairs * (width + dropped)
        working = 2 * B * H * block * T * width
    elif cfg.attn_dropout:  # torch's own plain path
        attention, working = 4 * rank_unit + 3 * scores, 2 * scores
    else:
        attention, working = 4 * rank_unit + B * H * T * 4, 4 * rank_unit
    # LayerNorm keeps its input, its output and two numbers a row; RMSNorm on a CPU is many small operations
    norm = 2 * unit
    if cfg.norm == "rmsnorm" and not gpu:
        norm = unit + 2 * B * T * D * 4
    mlp = 2 * inner if cfg.mlp_matrix_count == 2 else 4 * inner
    dropout = 2 * unit if cfg.dropout else 0
    norms = {"pre-ln": 2, "post-ln": 2, "parallel": 1}[cfg.block]
    layer = norms * norm + attention + mlp + dropout
    if precision == "fp8":  # each linear layer keeps what it reads in eight bits; a GPU's attention keeps its output
        layer += (cfg.mlp_matrix_count * unit + rank_unit + inner) // 2 - norms * unit - inner
        if not gpu:  # which multiplies copies in fp32, two of each at a time
            layer -= rank_unit
            working = max(working, 5 * inner + 3 * unit + 8 * D * F)
    mask = (H if biased else 1) * (B if cfg.objective == "prefix" else 1) * T * T * width
    ends = norm + mask + (unit if cfg.embnorm else 0) + (unit if cfg.dropout else 0)
    if recompute:
        return cfg.layers * unit + ends, layer + max(working, 2 * inner) + unit
    return cfg.layers * layer + ends, max(working, 2 * inner) + unit
