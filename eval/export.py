"""python -m eval.export RUN_DIR --to DIR: writes a finished run as a Hugging Face checkpoint, and verifies it.

Without --to it is written to the folder `hub` of the run directory. An export of the run's present weights that is
there already is kept; one of other weights is replaced.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import answers, rundir, safe_files
from data.tokenizer import AWKWARD, unexportable
from eval import location

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")  # nothing of this is on the hub

ROWS = 2  # sequences of held-out text whose logits are compared


def main(argv: list[str] | None = None) -> int:
    parser = answers.Parser(prog="python -m eval.export", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="of a finished run")
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="where the run's prepared data is (default: data in its OUT)"
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="a folder that does not exist yet (default: hub in RUN_DIR)"
    )
    answers.add_format(parser)
    args = parser.parse_args(argv)
    to = args.to or args.run / rundir.HUB
    is_new = bool(args.to) or not rundir.exported(args.run)
    try:
        verified = export(args.run, args.to, args.store) if is_new else "it is there already"
    except (ValueError, OSError) as error:
        if args.format == "json":
            print(answers.error(str(error)))
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.format == "json":
        print(answers.answer("export", {"written": str(to), "new": is_new, "verified": verified if is_new else None}))
    else:
        print(f"{to}: {verified}")
    return 0


def export(directory: Path, to: Path | None, store: Path | None = None) -> str:
    """Write a run as a Hugging Face checkpoint, and verify the checkpoint. Returns a sentence on what was verified.

    Args:
        directory: the run directory.
        to: the folder to create; None: HUB in the run directory, replacing an earlier export of this run.
        store: the store of prepared data; None: that of the OUT folder of the run.

    Raises:
        ValueError: the run is not finished or is damaged, `to` exists, Hugging Face has no such architecture, or the
            checkpoint does not compute the same. No checkpoint is left then.
    """
    run = location.read_run(directory)
    if rundir.read_done(directory) is None:
        raise ValueError(f"{directory} has no {rundir.DONE}: only a finished run can be exported")
    earlier = to is None and _is_of_run(safe_files.path_inside(directory, rundir.HUB), run)
    to = to or directory / rundir.HUB
    if to.exists() and not earlier:
        raise ValueError(f"{to} exists; name a folder that does not")
    from model import hub
    from model.config import ModelConfig

    try:
        cfg = ModelConfig(**run["config"]["model"])
    except TypeError as error:
        raise ValueError(f"{directory} was trained by another version: {error}") from error
    form = hub.counterpart(cfg)

    import torch
    import transformers

    from eval.tasks.probes import documents
    from eval.weights import Weights

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    store = location.data_store(directory, store)
    tokenizer = location.load_tokenizer(directory, run, store)
    if why := unexportable(tokenizer):
        raise ValueError(why)
    safe_files.path_inside(directory, rundir.WEIGHTS)
    weights = Weights(directory / rundir.WEIGHTS)
    if note := weights.check():
        print(f"note: {note}", file=sys.stderr)
    state = weights.read(run, None)
    texts = documents(location.stored(store, path) for path in run["data"]["valid"])
    encoded = tokenizer.encode_batch(texts)
    rows_BT = torch.tensor(sequences(encoded, tokenizer.eod, cfg.seq))
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        origin = {name: run[name] for name in ("cell", "fingerprint", "commit")}
        origin["weights"] = weights.sha256
        hub.save(cfg, state, draft, tokenizer.eod, origin, getattr(tokenizer, "pad", None))
        convert(tokenizer, cfg.seq if cfg.pos == "learned" else None, form.causal).save_pretrained(draft)
        compare(
            tokenizer,
            transformers.AutoTokenizer.from_pretrained(draft, local_files_only=True),
            [*texts, *AWKWARD],
            [*encoded, *map(tokenizer.encode, AWKWARD)],
        )
        difference = hub.verify(draft, cfg, state, rows_BT)
        if earlier:
            shutil.rmtree(to)
        os.rename(draft, to)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    size = sum(map(len, texts))
    generates = ", it generates as ours does" if form.causal else ""
    return (
        f"{form.name}; its logits differ by {difference:.1e} of the largest (allowed {hub.TOLERANCE:.0e}){generates}, "
        f"and its tokenizer gives the same ids on {len(texts)} held-out documents ({size:,} characters)"
    )


def _is_of_run(folder: Path, run: dict[str, Any]) -> bool:
    """Whether a folder contains an export of a run, perhaps of weights that have been replaced since. `run`: the
    content of its run.json."""
    origin = (safe_files.read_json(folder / "config.json") or {}).get("trained_by")
    return isinstance(origin, dict) and origin.get("fingerprint") == run["fingerprint"]


def sequences(encoded: Iterable[list[int]], eod: int, seq: int) -> list[list[int]]:
    """The first ROWS sequences of held-out text as token ids, [ROWS][seq]; where there is less text, one shorter
    sequence.

    Args:
        encoded: the token ids of each held-out document.
        eod: the id of the end-of-document token, which is put before each document.
        seq: the training length.

    Raises:
        ValueError: there is no held-out text.
    """
    stream: list[int] = []
    for ids in encoded:
        stream += [eod, *ids]
        if len(stream) >= ROWS * seq:
            return [stream[i * seq : (i + 1) * seq] for i in range(ROWS)]
    if not stream:
        raise ValueError("there is no held-out text to verify the export with")
    return [stream[:seq]]


# ------------------------------------------------------------------------------------------- the tokenizer


def convert(tokenizer: Any, longest: int | None = None, causal: bool = True) -> Any:
    """Convert a tokenizer of data/tokenizer.py to a transformers.PreTrainedTokenizerFast that gives the same ids for
    every text.

    The name of a special token within a text is encoded as ordinary characters (`split_special_tokens`). Only with
    WordPiece are special tokens recognised in a text, as in every BERT, so that a text may contain [MASK]; pass
    `split_special_tokens=True` to encode them as characters and get the ids of the original tokenizer.

    The two differ in decoding ids whose bytes together are not UTF-8, which no text gives. The converted tokenizer
    decodes each of these bytes as U+FFFD, the original only the invalid ones.

    Args:
        tokenizer: the tokenizer to convert.
        longest: the longest input, in tokens; None: unlimited.
        causal: whether the model is a decoder. For an encoder the mask token is declared, where there is one.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    if hasattr(tokenizer, "definition"):  # byte-level BPE is in Hugging Face's format already
        backend = Backend.from_str(tokenizer.definition)
        end = backend.id_to_token(tokenizer.eod)
    else:
        backend, end = from_sentencepiece(tokenizer), tokenizer.pieces[tokenizer.eod].text
    if tokenizer.kind == "wordpiece":
        return from_wordpiece(tokenizer, backend, longest)
    names = {} if causal or tokenizer.mask is None else {"mask_token": backend.id_to_token(tokenizer.mask)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        **({"model_max_length": longest} if longest else {}),
    )


def from_wordpiece(tokenizer: Any, backend: Any, longest: int | None) -> Any:
    """Convert a WordPiece tokenizer to a transformers.PreTrainedTokenizerFast. The result encodes a text as [CLS] text
    [SEP], and a pair as [CLS] text [SEP] second text [SEP], as eval/finetune does, without token types.

    BertTokenizerFast is not used: when it is loaded, it replaces the file's normaliser and word splitting by BERT's
    own, which gives other ids (transformers 5.23).

    Args:
        tokenizer: the WordPiece of data/wordpiece.py.
        backend: the same as a tokenizers.Tokenizer, which is changed.
        longest: the longest input, in tokens; None: unlimited.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    pad, unk, cls, sep, mask = (
        backend.id_to_token(i) for i in (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask)
    )
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, tokenizer.cls), (sep, tokenizer.sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unk,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **({"model_max_length": longest} if longest else {}),
    )


def from_sentencepiece(tokenizer: Any) -> Any:
    """A tokenizers.Tokenizer with a BPE model that has the vocabulary of a SentencePiece model trained here.

    The pieces contain spaces themselves, and U+2581 is encoded as bytes like any character without a piece, so that no
    pre- or post-processing is needed. Raises ValueError where the tokenizer cannot be exported.
    """
    from tokenizers import Regex, Tokenizer, decoders, models

    if why := unexportable(tokenizer):
        raise ValueError(why)
    pieces = [piece._replace(text=piece.text.replace("\u2581", " ")) for piece in tokenizer.pieces]
    scores = {piece.text: piece.score for piece in pieces if piece.kind == "normal"}
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges(scores), byte_fallback=True))
    newline = decoders.Replace(Regex("^<0x0A>$"), "\n")  # always a byte; a broken character after it leaves it whole
    backend.decoder = decoders.Sequence([newline, decoders.ByteFallback(), decoders.Fuse()])
    return backend


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The list of BPE merges, best first, for a vocabulary of which only scores are known: every way to cut each piece
    in two pieces of the vocabulary. `scores`: {piece: score}.

    SentencePiece joins the neighbouring pieces whose union has the best score, the leftmost pair among equals. As long
    as nothing was joined across the borders of a stretch of text, it is joined as if it stood alone. So a piece always
    results from the same two parts, whatever its context; its other cuts never occur, and their order does not matter.
    """
    best = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:i], piece[i:]) for piece in best for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def compare(ours: Any, theirs: Any, texts: list[str], encoded: list[list[int]]) -> None:
    """Check that an exported tokenizer encodes texts to the same ids as the original, and decodes the ids to the texts,
    or where the original is lossy to what the original decodes.

    Args:
        ours: the original tokenizer.
        theirs: the exported one.
        texts: the texts.
        encoded: the ids of each text by the original tokenizer.

    Raises:
        ValueError: the two differ; the message shows where.
    """
    name, end = (
        ("separator", theirs.sep_token_id) if ours.kind == "wordpiece" else ("end of document", theirs.eos_token_id)
    )
    if end != ours.eod:
        raise ValueError(f"the tokenizer's {name} is {end}, not {ours.eod}")
    alone = {"add_special_tokens": False, "split_special_tokens": True} if ours.kind == "wordpiece" else {}
    for text, ids, their_ids in zip(texts, encoded, theirs(texts, **alone).input_ids, strict=True):
        if ids != their_ids:
            same = os.path.commonprefix([ids, their_ids])
            raise ValueError(f"the converted tokenizer gives other ids, after {ours.decode(same)[-40:]!r}")
        back = text if ours.lossless else ours.decode(ids)  # which leaves out what is unknown
        if theirs.decode(ids, skip_special_tokens=not ours.lossless) != back:
            raise ValueError(f"the converted tokenizer does not give back {text[:40]!r}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no draft is left
    sys.exit(main())
