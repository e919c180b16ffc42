"""Held-out loss of a masked language model: fixed tokens of held-out text are masked, and predicted from all others.

Texts are joined end to end, each behind an end-of-document token, as in training, and cut into sequences of the
training length. In each the same share of tokens is masked as in training, at positions that depend on the sequence's
number alone. All of them become the mask token, so that none can be read off the input (training leaves one in ten as
it is): the loss lies somewhat above that of training.

Bits per byte divide by the bytes of the masked part of the text, taken as the text's bytes times the share of its
tokens that is masked. They can be compared between tokenizers, and not between mask rates: with more masked, less is
left to predict from.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from eval.statistics import LN2, ratio_stderr

SEED = 20  # of the masked positions, for every model
ROWS_CPU, ROWS_GPU = 16, 256  # sequences of a forward pass; untuned


@torch.inference_mode()
def masked_loss(
    model: Any,
    texts: Sequence[str],
    tokenizer: Any,
    mask: int,
    specials: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The loss of a GPT of the MLM objective, in evaluation, on any device.

    Args:
        mask: the id that stands for a masked token. specials: ids that no text becomes; they are never masked.
        progress: called after every forward pass with the sequences done and the sequences in all.

    Returns:
        {"nats": per masked token, "bits_per_byte": of masked text, "stderr": of the latter, over sequences,
        "mask_rate", "masked": tokens that were predicted, "bytes": of the masked text,
        "samples": [[nats, masked tokens, bytes], ...] of each sequence}.

    Raises:
        ValueError: when the model has another objective, or there is not a sequence of text.
    """
    cfg = model.cfg
    if cfg.objective != "mlm":
        raise ValueError(f"loss on masked tokens needs model.objective=mlm; this model has {cfg.objective}")
    rows, sizes = sequences(texts, tokenizer, cfg.seq)
    device = next(model.parameters()).device
    step = ROWS_GPU if device.type == "cuda" else ROWS_CPU
    samples: list[list[float]] = []
    for first in range(0, len(rows), step):
        tokens_BT = torch.from_numpy(rows[first : first + step])
        places_BM = torch.from_numpy(
            np.stack([masked_positions(row, n, cfg.masked, specials) for n, row in enumerate(tokens_BT.numpy(), first)])
        )
        inputs_BT = tokens_BT.scatter(1, places_BM, mask).to(device)
        flat = (places_BM + cfg.seq * torch.arange(len(places_BM))[:, None]).flatten()
        logits_NV = model.project(model.hidden(inputs_BT, only=flat.to(device))).float()
        nats_N = torch.nn.functional.cross_entropy(
            logits_NV, tokens_BT.flatten()[flat].to(device), reduction="none"
        ).double()
        for size, nats in zip(sizes[first : first + step], nats_N.view(places_BM.shape).sum(1).tolist(), strict=True):
            samples.append([nats, cfg.masked, size * cfg.masked / cfg.seq])
        progress(min(first + step, len(rows)), len(rows))
    nats_S, masked_S, bytes_S = np.array(samples).T
    return {
        "nats": float(nats_S.sum() / masked_S.sum()),
        "bits_per_byte": float(nats_S.sum() / LN2 / bytes_S.sum()),
        "stderr": ratio_stderr(nats_S / LN2, bytes_S) if len(samples) > 1 else None,
        "mask_rate": cfg.mask_rate,
        "masked": int(masked_S.sum()),
        "bytes": float(bytes_S.sum()),
        "samples": samples,
    }


def sequences(texts: Sequence[str], tokenizer: Any, seq: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [sequences, seq], and the bytes of text in each, where a text's bytes are spread evenly over its
    tokens. What is left at the end, less than a sequence, is not scored.

    Raises:
        ValueError: when the texts have fewer tokens than a sequence.
    """
    ids, sizes = [], []
    for text, encoded in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        ids += [tokenizer.eod, *encoded]
        sizes += [0.0, *[len(text.encode()) / max(1, len(encoded))] * len(encoded)]
    count = len(ids) // seq
    if not count:
        raise ValueError(f"the held-out text has {len(ids)} tokens: less than a sequence of {seq}")
    return (
        np.array(ids[: count * seq], np.int64).reshape(count, seq),
        np.array(sizes[: count * seq]).reshape(count, seq).sum(1),
    )


def masked_positions(row: np.ndarray, number: int, count: int, specials: Sequence[int]) -> np.ndarray:
    """`count` positions of sequence `number`, in order: special tokens only where there are too few others."""
    keys = np.random.default_rng([SEED, number]).random(len(row)) + np.isin(row, list(specials))
    return np.sort(np.argsort(keys, kind="stable")[:count])
