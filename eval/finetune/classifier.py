"""A classifier on top of the hidden states of a model, which is a GPT of this project (encoder or decoder) or a model
of Hugging Face's.

A backbone is a module that turns token ids into hidden states. Padding on either side has no effect: positions are
counted from the first real token, and no real token sees padding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

POOLINGS = ("first", "mean", "last")  # of the hidden states of real tokens


class PaddedBatch(NamedTuple):
    """A batch of padded sequences: token ids `tokens_BT`, and `real_BT`, True for tokens and False for padding, both
    [B, T]."""

    tokens_BT: Tensor
    real_BT: Tensor


def pad(rows: Sequence[Sequence[int]], side: str = "right") -> PaddedBatch:
    """Make one batch of sequences of token ids, padded with id 0 to the longest. `side`: where padding goes, "right" or
    "left"."""
    B, T = len(rows), max(map(len, rows))
    tokens_BT, real_BT = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(T - len(row), T)
        tokens_BT[b, place] = torch.tensor(row)
        real_BT[b, place] = True
    return PaddedBatch(tokens_BT, real_BT)


class GPTBackbone(nn.Module):
    """A GPT of this project (model/gpt.py), with any objective, as a module that turns token ids into hidden states."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.width = model.cfg.hidden

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The hidden states [B, T, D] of the last layer for a batch."""
        from model.attention import Arrangement

        objective, (B, T) = self.model.objective, batch.tokens_BT.shape
        length_B = batch.real_BT.sum(1)
        if objective.causal and bool(batch.real_BT[:, 0].all()):
            return self.model.hidden_states(batch.tokens_BT)  # padding stands behind what is real, and nothing sees it
        positions_BT = (batch.real_BT.cumsum(1) - 1).clamp_min(0)
        b = torch.arange(B, device=positions_BT.device)[:, None, None]
        sees_BTT = (
            objective.sees(length_B, b, positions_BT[:, :, None], positions_BT[:, None, :]) & batch.real_BT[:, None, :]
        )
        itself = torch.eye(T, dtype=torch.bool, device=positions_BT.device)  # each token has to see one, padding too
        return self.model.hidden_states(batch.tokens_BT, Arrangement(positions_BT, sees_BTT | itself))


class HuggingFaceBackbone(nn.Module):
    """A model of Hugging Face's, from a folder on this machine, as a module that turns token ids into hidden states."""

    def __init__(self, folder: Path):
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder, local_files_only=True).float()
        self.width = self.model.config.hidden_size

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The hidden states [B, T, D] of the last layer for a batch."""
        # Right padding needs no positions, and models such as RoBERTa count theirs from another number than 0.
        left = not bool(batch.real_BT[:, 0].all())
        positions = {"position_ids": (batch.real_BT.cumsum(1) - 1).clamp_min(0)} if left else {}
        mask_BT = batch.real_BT.long()
        return self.model(input_ids=batch.tokens_BT, attention_mask=mask_BT, **positions).last_hidden_state


class Classifier(nn.Module):
    """A classifier of sequences: backbone, pooling, linear layer, tanh, dropout, linear layer. The head is that of BERT
    and of "Cramming".

    Args:
        backbone: `GPTBackbone` or `HuggingFaceBackbone`.
        outputs: the number of classes, or 1 for a regression.
        pooling: how one vector is made of the hidden states of a sequence. "first": the hidden state of the first real
            token (for encoders); "last": of the last real token (for decoders); "mean": the mean over all real tokens.
        dropout: the dropout probability of the head.
        seed: the seed of the head's initial weights.
    """

    def __init__(self, backbone: nn.Module, outputs: int, pooling: str, dropout: float, seed: int):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling} is not one of {', '.join(POOLINGS)}")
        self.backbone, self.pooling = backbone, pooling
        width = int(backbone.width)  # type: ignore[arg-type]
        self.dense, self.out = nn.Linear(width, width), nn.Linear(width, outputs)
        self.drop = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.dense, self.out):  # BERT's initialisation
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The logits [B, outputs] of a batch, in fp32."""
        x_BTD, real_BT = self.backbone(batch).float(), batch.real_BT
        if self.pooling == "mean":
            weight_BT1 = real_BT[:, :, None].float()
            x_BD = (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
        else:
            t = torch.arange(real_BT.shape[1], device=real_BT.device)
            first = self.pooling == "first"
            at_B = torch.where(real_BT, t, len(t) if first else -1)
            at_B = at_B.min(1).values if first else at_B.max(1).values
            x_BD = x_BTD[torch.arange(len(x_BTD), device=t.device), at_B]
        return self.out(self.drop(torch.tanh(self.dense(x_BD))))


def input_encoder(tokenizer: Any, longest: int) -> Callable[[str, str], list[int]]:
    """Make a function (text_a, text_b) -> token ids, for the input of a classifier. The ids are: start token, text_a,
    separator; then, unless text_b is "", text_b and a second separator.

    A tokenizer without start and separator tokens uses its end-of-document token for both. Inputs of more than
    `longest` tokens are truncated as by Hugging Face's "longest_first": the longer text is cut first, then both
    equally.

    Who changes this encoding must increase rundir.GLUE_INPUTS_VERSION, so that earlier results are not reused.
    """
    start = getattr(tokenizer, "cls", None)
    separator = getattr(tokenizer, "sep", None)
    start = tokenizer.eod if start is None else start
    separator = tokenizer.eod if separator is None else separator

    def encode(text_a: str, text_b: str) -> list[int]:
        a, b = tokenizer.encode(text_a), tokenizer.encode(text_b) if text_b else []
        room = longest - 2 - (1 if text_b else 0)
        shorter = min(len(a), len(b), room // 2)
        a_room, b_room = (shorter, room - shorter) if len(a) <= len(b) else (room - shorter, shorter)
        return [start, *a[:a_room], separator] + ([*b[:b_room], separator] if text_b else [])

    return encode


def is_causal(folder: Path) -> bool:
    """Whether a Hugging Face checkpoint is a decoder (causal attention). `folder`: the folder of the checkpoint.

    A model counts as an encoder if transformers has a masked language model of its type, and its configuration sets
    neither `is_decoder` nor `is_encoder_decoder`. The names in `architectures` do not tell: a decoder that was
    saved without its head is called GPT2Model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return decodes or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def huggingface_input_encoder(folder: Path, longest: int) -> Callable[[str, str], list[int]]:
    """Make a function (text_a, text_b) -> token ids that uses the tokenizer of a Hugging Face checkpoint. Its template
    for a pair of texts is used, or its template for one text where text_b is "".

    Args:
        folder: the folder of the checkpoint.
        longest: the number of tokens to which inputs are truncated.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(text_a: str, text_b: str) -> list[int]:
        return tokenizer(text_a, text_b or None, truncation=True, max_length=longest)["input_ids"]

    return encode
