"""python -m eval.export RUN_DIR --to DIR: a finished run as a Hugging Face checkpoint, verified before it is there.

Without --to it is the folder `hub` of the run directory: kept where it is an export of the run's weights, and made anew
where the run has other weights by now.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ablations import answers, rundir
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
    """Write the run in `directory` as a Hugging Face checkpoint in the folder `to`; returns a sentence on what was
    verified.

    to: None: HUB of the run directory, in place of an earlier export of this run.
    store: prepared data; None: that of the OUT folder that the run is in.

    Raises:
        ValueError: the run is not finished or is damaged, `to` exists, Hugging Face has no such architecture, or the
            checkpoint does not compute the same. Nothing is left then.
    """
    run = location.read_run(directory)
    if rundir.read_done(directory) is None:
        raise ValueError(f"{directory} has no {rundir.DONE}: only a finished run can be exported")
    earlier = to is None and _is_of_run(rundir.inside(directory, rundir.HUB), run)
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
    rundir.inside(directory, rundir.WEIGHTS)
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
    """Whether a folder holds an export of this run, maybe of other weights than it has now."""
    origin = (rundir.read_json(folder / "config.json") or {}).get("trained_by")
    return isinstance(origin, dict) and origin.get("fingerprint") == run["fingerprint"]


def sequences(encoded: Iterable[list[int]], eod: int, seq: int) -> list[list[int]]:
    """The first ROWS sequences of held-out text, [rows][tokens]; one shorter sequence where there is less."""
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
    """Our tokenizer as a transformers one: the same ids for every text.

    `split_special_tokens`: the name of the end of document in a text is some characters, not the end of document. Only
    WordPiece's are found in a text, as in every BERT, so that a text can hold a [MASK] to be filled in; with
    `split_special_tokens=True` given for a text they are characters there too, and its ids are ours.

    causal: of a decoder; otherwise a token that can stand for a masked one is named as such.

    One difference is left. Of ids whose bytes are no UTF-8 as a whole, which no text gives, each byte becomes U+FFFD
    here, and in ours only those that cannot be read.
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
    """BERT's kind: [CLS] text [SEP], or [CLS] text [SEP] other text [SEP], as eval/finetune joins them. No token types:
    the model has one kind.

    Not as transformers' BertTokenizerFast: when that class is loaded it puts BERT's own normaliser and splitting into
    words in place of those in the file, and other ids come out (transformers 5.23).
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
    """A backend for a SentencePiece model that was trained here by BPE.

    A space is a space in its pieces, so that U+2581 has no special meaning and goes in as bytes, and no step before
    or after the model is needed.
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
    """The pairs that BPE joins, best first, for pieces that only have scores: each piece, cut in every way.

    SentencePiece joins the neighbours whose union has the best score, the leftmost of equals. A stretch of text
    whose borders nothing has crossed yet has been joined as if it stood alone; so a piece is always made of the same
    two parts, whatever surrounds it. Its other cuts never meet, and their order does not matter.
    """
    best = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:i], piece[i:]) for piece in best for i in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def compare(ours: Any, theirs: Any, texts: list[str], encoded: list[list[int]]) -> None:
    """Raises ValueError unless `theirs` encodes the texts as `ours` did, and decodes them: to the texts, or where a
    tokenizer is lossy to what `ours` decodes them to."""
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
