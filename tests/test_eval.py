"""eval/harness.py against lm-eval's own Hugging Face backend, and eval/__main__.py on a run directory."""

import gzip
import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eval import harness, probes  # noqa: E402
from eval.__main__ import evaluate, main  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from model.config import ModelConfig  # noqa: E402
from model.gpt import GPT  # noqa: E402

SHAPE = dict(layers=2, hidden=32, heads=4, seq=24, act="gelu", norm="layernorm", embnorm=False,
             rotary_base=10000.0, init_std=0.2, norm_eps=1e-5)
WORDS = "the graph of a node is an edge in the path and each number has one value that was set by its name".split()


class Letters:
    """A tokenizer of one character each: 0 to 255, and 256 begins a document."""

    eod = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))


def model(pos: str = "learned", seq: int = 24) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(**{**SHAPE, "seq": seq}, vocab=257, pos=pos), seed=3)  # type: ignore[arg-type]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=("t", i, 1)) for i, a in enumerate(arguments)]


def gpt2_with_our_weights(ours: GPT):
    """Our learned + GELU + LayerNorm model is GPT-2; transformers' weights are the transposes."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=ours.cfg.padded_vocab, n_positions=ours.cfg.seq, n_embd=ours.cfg.hidden, n_layer=ours.cfg.layers,
        n_head=ours.cfg.heads, activation_function="gelu_new", bos_token_id=256, eos_token_id=256)).eval()
    with torch.no_grad():
        for p in ours.parameters():  # biases and gains are 0 and 1 at initialisation, where mistakes would not show
            p.add_(0.1 * torch.randn_like(p))
    w = ours.state_dict()
    state = {"transformer.wte.weight": w["embed.weight"], "lm_head.weight": w["embed.weight"],
             "transformer.wpe.weight": w["position.table"],
             "transformer.ln_f.weight": w["norm.weight"], "transformer.ln_f.bias": w["norm.bias"]}
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj",
             "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    for layer in range(ours.cfg.layers):
        for hf, own in names.items():
            for kind in ("weight", "bias"):
                value = w[f"blocks.{layer}.{own}.{kind}"]
                state[f"transformer.h.{layer}.{hf}.{kind}"] = value.T if value.dim() == 2 else value
    theirs.load_state_dict(state, strict=True)
    return theirs


def characters():
    """The tokenizer of `Letters` as transformers wants it."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel({chr(i): i for i in range(256)}, unk_token=" "))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tok.add_special_tokens([tokenizers.AddedToken("<eod>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<eod>", bos_token="<eod>", pad_token="<eod>")


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def test_scores_equal_those_of_lm_eval_for_the_same_gpt2():
    """Log-likelihood, greediness and rolling log-likelihood, also of contexts that must be cut from the
    left."""
    from lm_eval.models.huggingface import HFLM

    ours = model()
    # logits_cache off: with it, 0.4.13 scores a short continuation at the first position of a longer one that
    # has the same input ("a" * 25 and "a" * 48 below)
    reference = HFLM(pretrained=gpt2_with_our_weights(ours), tokenizer=characters(), max_length=24, device="cpu",
                     dtype="float32", batch_size=3, prefix_token_id=256, logits_cache=False)
    scorer = harness.Scorer(ours, Letters(), window=24, batch=100)
    rng = random.Random(0)
    asked = [(text(rng, n), " " + rng.choice(WORDS)) for n in (1, 2, 3, 4, 5, 8, 20)]
    asked += [(asked[1][0], " a"), (asked[1][0], " an"), (asked[1][0], " ane"), ("", "the graph"), ("in the ", "path")]
    for words in range(1, 9):  # and the likeliest token itself, so that not every answer to "greedy?" is no
        context = text(rng, words)
        with torch.no_grad():
            likeliest = int(ours(torch.tensor([Letters().encode(context)[-24:]]))[0, -1].argmax())
        if likeliest < 256:
            asked.append((context, chr(likeliest)))
    theirs = reference.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    mine = scorer.loglikelihood(requests("loglikelihood", asked))
    assert [g for _, g in mine] == [g for _, g in theirs]
    assert {g for _, g in mine} == {True, False}
    np.testing.assert_allclose([x for x, _ in mine], [x for x, _ in theirs], atol=1e-4)

    whole = [(text(rng, n),) for n in (1, 3, 4, 5, 20, 60)] + [("a" * n,) for n in (23, 24, 25, 48, 49)]
    theirs = reference.loglikelihood_rolling(requests("loglikelihood_rolling", whole), disable_tqdm=True)
    mine = scorer.loglikelihood_rolling(requests("loglikelihood_rolling", whole))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-4)
