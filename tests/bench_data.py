"""Measures the speed of the data path: `make bench-data`. To compare with Megatron-LM: ARGS="--megatron
path/to/Megatron-LM".

From files to tokens: `python -m data.tokens` decompresses, parses and tokenizes, and writes .bin and .idx. It is
compared with Megatron-LM's preprocess_data on the same text, which has to write the same bytes, and with the library
SentencePiece on its own model. The text is that of ../shared/data/corpora, repeated with one word in a hundred changed.
Rates are MB per CPU second, summed over processes, after the time for a single document is subtracted; two workers are
measured in wall time.

From tokens to batches: building the index, and reading with a cold and with a warm page cache; only root can make it
cold. All files are written below --work, and removed at the end.
"""

import argparse
import filecmp
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CORPORA = ROOT.parent / "shared" / "data" / "corpora"
SHARDS = 16
SEQ = 2048
# Tokens per second and process of training 1.3B parameters on eight GPUs; reading may take 1% of that time.
PACE = 200_000


def documents() -> list[dict[str, Any]]:
    """All documents of the corpora in CORPORA, each {"text": str, "meta": ...}."""
    import zstandard

    rows = []
    for path in sorted(CORPORA.glob("*/*.jsonl.zst")):
        with open(path, "rb") as file:
            raw = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        rows += [json.loads(line) for line in raw.splitlines()]
    return rows


def make_text(folder: Path, megabytes: int) -> float:
    """Write SHARDS compressed files of JSON lines with about `megabytes` of text. Returns the exact number of MB."""
    import zstandard

    folder.mkdir(parents=True)
    rng, source, size = random.Random(megabytes), documents(), 0
    for shard in range(SHARDS):
        path = folder / f"{shard:02d}.jsonl.zst"
        with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
            while size < (shard + 1) * megabytes * 1_000_000 / SHARDS:
                document = rng.choice(source)
                words = document["text"].split(" ")
                for _ in range(len(words) // 100 + 1):  # words that the tokenizer has not met before
                    words[rng.randrange(len(words))] += f"{rng.getrandbits(24):x}"
                text = " ".join(words)
                size += len(text.encode())
                out.write(json.dumps({"text": text, "meta": document["meta"]}, ensure_ascii=False).encode() + b"\n")
    return size / 1e6


def unpack(folder: Path, to: Path) -> None:
    """Write all shards into one uncompressed file, since Megatron-LM's tool reads no .zst."""
    import zstandard

    with open(to, "wb") as out:
        for path in sorted(folder.glob("*.zst")):
            with open(path, "rb") as file:
                packed = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                shutil.copyfileobj(packed, out, 1 << 22)


def run(command: list[Any], **environment: str) -> tuple[float, float, float]:
    """Run a command, with the environment variables `environment` added. Returns (seconds of wall time, CPU seconds of
    all its processes, MB of its largest process). Ends this program where the command fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    errors = process.stderr.read()  # type: ignore[union-attr]
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        sys.exit(f"{' '.join(map(str, command))}\n{errors}")
    return time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def ours(text: Path, tokenizer: Path, to: Path, workers: int = 1) -> tuple[float, float, float]:
    return run([sys.executable, "-m", "data.tokens", text, "--tokenizer", tokenizer, "--to", to, "--workers", workers])


def theirs(checkout: Path, tool: str, text: Path, tokenizer: Path, to: Path) -> tuple[float, float, float]:
    more = ["--use-gigatoken"] if tool.endswith("fast.py") else ["--workers", "1"]
    return run(
        [
            sys.executable,
            checkout / "tools" / tool,
            "--input",
            text,
            "--tokenizer-type",
            "HuggingFaceTokenizer",
            "--tokenizer-model",
            tokenizer,
            "--append-eod",
            "--output-prefix",
            to,
            *more,
        ],
        PYTHONPATH=str(checkout),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        RAYON_NUM_THREADS="1",
        OMP_NUM_THREADS="1",
    )


def tokenization(work: Path, sizes: list[int], gpt2: Path | None, checkout: Path | None) -> None:
    """Measure the way from files to tokens, and print the results.

    Args:
        work: a folder for all files.
        sizes: MB of the texts.
        gpt2: a folder with GPT-2's vocabulary; None: 32,000 pieces are trained.
        checkout: Megatron-LM's code, which is compared on the first size; None: it is not compared.
    """
    from data.tokenizer import load_tokenizer, train

    texts = [document["text"] for document in documents()]
    bytes_ = sum(len(text.encode()) for text in texts)
    byte_bpe, pieces = work / "byte.json", work / "pieces.model"
    if gpt2:
        byte_bpe = gpt2
    else:
        byte_bpe.write_bytes(train(texts, bytes_, 32_000, "byte-bpe"))
    pieces.write_bytes(train(texts[::4], bytes_ // 4, 32_000, "bpe"))
    tiny = work / "tiny.jsonl"
    tiny.write_text(json.dumps({"text": "a"}) + "\n")
    nothing = min(ours(tiny, byte_bpe, work / "tiny")[1] for _ in range(3))
    print(f"one document, ours: {nothing:.2f} CPU s")
    for size in sizes:
        folder, to = work / f"text{size}", work / f"ours{size}"
        mb = make_text(folder, size)
        clock, cpu, memory = ours(folder, byte_bpe, to)
        print(
            f"{mb:.0f} MB, byte-level BPE: {mb / (cpu - nothing):.1f} MB per core-second ({mb / cpu:.1f} with the "
            f"start), {clock:.1f} s, largest process {memory:.0f} MB",
            flush=True,
        )
        if size == sizes[0]:
            if checkout:
                megatron(work, checkout, folder, to, byte_bpe, mb, mb / (cpu - nothing))
            sentencepiece(work, folder, pieces, load_tokenizer(pieces))
        if size == sizes[-1] and len(os.sched_getaffinity(0)) > 1:
            one = min(clock, ours(folder, byte_bpe, to)[0])
            two = min(ours(folder, byte_bpe, work / "two", 2)[0] for _ in range(2))
            same = all(filecmp.cmp(f"{to}{end}", f"{work / 'two'}{end}", False) for end in (".bin", ".idx"))
            print(
                f"{mb:.0f} MB, two workers: {one / two:.2f} x by the clock ({one:.1f} s, {two:.1f} s); "
                f"{'the same bytes' if same else 'OTHER BYTES'}",
                flush=True,
            )
        for path in glob.glob(f"{work}/*.bin") + glob.glob(f"{work}/*.idx"):
            os.remove(path)
        shutil.rmtree(folder)


def megatron(work: Path, checkout: Path, folder: Path, to: Path, tokenizer: Path, mb: float, rate: float) -> None:
    """Measure Megatron-LM's tools on the text in `folder`, and compare their files with ours.

    Args:
        work: a folder for all files.
        checkout: Megatron-LM's code.
        folder: the text, compressed.
        to: our token files, without .bin and .idx.
        tokenizer: our byte-level BPE.
        mb: MB of the text.
        rate: our MB per CPU second.
    """
    from transformers import PreTrainedTokenizerFast

    from data.tokenizer import ByteBPE, load_tokenizer
    from eval.export import convert_tokenizer

    loaded = load_tokenizer(tokenizer)
    assert isinstance(loaded, ByteBPE)
    converted: PreTrainedTokenizerFast = convert_tokenizer(loaded)
    converted.split_special_tokens = False
    converted.save_pretrained(work / "hf")
    unpack(folder, work / "all.jsonl")
    for tool in ("preprocess_data.py", "preprocess_data_fast.py"):
        if not (checkout / "tools" / tool).exists():
            continue
        nothing = theirs(checkout, tool, work / "tiny.jsonl", work / "hf", work / "tiny_theirs")[1]
        clock, cpu, memory = theirs(checkout, tool, work / "all.jsonl", work / "hf", work / "theirs")
        same = all(filecmp.cmp(f"{to}{e}", f"{work / 'theirs'}_text_document{e}", False) for e in (".bin", ".idx"))
        print(
            f"{mb:.0f} MB, Megatron-LM's {tool}, from a plain file: {mb / (cpu - nothing):.1f} MB per core-second "
            f"({mb / cpu:.1f} with the start), {clock:.1f} s, largest process {memory:.0f} MB; ours is "
            f"{rate * (cpu - nothing) / mb:.1f} x; {'the same bytes' if same else 'OTHER BYTES'}",
            flush=True,
        )


def sentencepiece(work: Path, folder: Path, path: Path, tokenizer: Any) -> None:
    """Compare our speed with that of the SentencePiece library on a file of `folder`. `work`: a folder for all files;
    `path`: the SentencePiece model; `tokenizer`: the same model, loaded by data.tokenizer."""
    import sentencepiece as library

    from data import corpus, documents, sources

    shard = sorted(folder.glob("*"))[0]
    spec = corpus.load_specification(str(shard))
    texts = [text for _, text, _ in documents.read_documents(spec, sources.source_files(spec)[0])]
    mb = sum(len(text.encode()) for text in texts) / 1e6
    own = library.SentencePieceProcessor(model_file=str(path))
    nothing = min(ours(work / "tiny.jsonl", path, work / "tiny")[1] for _ in range(3))
    rates: dict[str, list[float]] = {"library": [], "ours": []}
    for _ in range(3):
        start = time.process_time()
        own.encode(texts, num_threads=1)
        rates["library"].append(mb / (time.process_time() - start))
        rates["ours"].append(mb / (ours(shard, path, work / "sp")[1] - nothing))
    library_rate, rate = (sorted(measured)[1] for measured in rates.values())  # medians
    print(
        f"{mb:.0f} MB, SentencePiece BPE of {tokenizer.vocab_size:,}: {rate:.2f} MB per core-second, the library in "
        f"memory {library_rate:.2f}: {rate / library_rate:.0%}",
        flush=True,
    )


def batches(work: Path, tokens: float, sequence: int) -> None:
    """Measure building the index of a file of `tokens` random tokens, and reading samples of `sequence` tokens from it.
    `work`: a folder for all files."""
    import numpy as np

    from data import tokens as files
    from data.batches import Batches

    rng = np.random.default_rng(1)
    lengths = np.maximum(rng.lognormal(6.0, 1.0, int(tokens / 665)), 8).astype("<i4")  # mean 665: 2.6 kB of web text
    with open(work / "synthetic.bin", "wb") as file:
        remaining = int(lengths.sum(dtype=np.int64))
        while remaining:
            rng.integers(0, 50_000, min(remaining, 1 << 26), np.uint16).tofile(file)
            remaining -= min(remaining, 1 << 26)
    files._write_index(str(work / "synthetic"), np.dtype("<u2"), [lengths])
    count = int(lengths.sum(dtype=np.int64))
    source = Batches([(str(work / "synthetic"), 1.0)], sequence, 1)  # first here, so that its imports are not measured
    seconds, most = index(work / "synthetic", sequence)
    print(
        f"{count / 1e9:.2f}B tokens, {len(lengths) / 1e6:.2f}M documents, {(count - 1) // sequence / 1e6:.2f}M "
        f"samples of {sequence}: index in {seconds:.2f} CPU s, {most:.0f} MB at most",
        flush=True,
    )
    rows, sizes = 8, {"cold": 512, "warm": 4096}
    for state, samples in sizes.items():
        if state == "cold":
            os.sync()
            try:
                Path("/proc/sys/vm/drop_caches").write_text("1")
            except OSError:
                print("not root: the page cache stays warm")
                continue
        start = time.perf_counter()
        for first in range(0, samples, rows):
            source.batch(range(first, first + rows))
        rate = samples / (time.perf_counter() - start)
        print(
            f"reading, {state} page cache: {rate:,.0f} samples of {sequence} per second, {rate * sequence:,.0f} "
            f"tokens/s; {PACE / (rate * sequence):.2%} of a step at {PACE:,} tokens/s",
            flush=True,
        )


def index(prefix: Path, sequence: int) -> tuple[float, float]:
    """Build the index of the token files `prefix` and read the first sample, in a process of its own. Returns (its CPU
    seconds, its peak memory in MB). `sequence`: tokens of a sample."""
    from data.batches import Batches

    here, there = os.pipe()
    if not (child := os.fork()):
        os.read(here, 1)
        Batches([(str(prefix), 1.0)], sequence, 1).batch(range(1))
        os._exit(0)
    before = most = _own(child)
    begun = _cpu(child)
    os.write(there, b".")
    while True:
        ended, _, used = os.wait4(child, os.WNOHANG)
        if ended:
            return used.ru_utime + used.ru_stime - begun, most - before
        most = max(most, _own(child))
        time.sleep(0.002)


def _cpu(process: int) -> float:
    """CPU seconds of a process so far."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _own(process: int) -> float:
    """MB of a process's anonymous memory, which does not include pages of files."""
    with open(f"/proc/{process}/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--megatron", type=Path, metavar="DIR", help="a checkout of Megatron-LM, whose tool runs on the first size")
    add("--gpt2", type=Path, metavar="DIR", help="a folder with GPT-2's vocabulary (else 32,000 pieces are trained)")
    add("--mb", type=int, nargs="+", default=[100, 1000], help="sizes of the text (%(default)s)")
    add("--tokens", type=float, default=1e9, help="of the file that batches are read from (%(default)s); 0: none")
    add("--work", type=Path, default=ROOT / "runs" / "bench-data")
    given = parser.parse_args()
    for name in ("megatron", "gpt2", "work"):  # commands run in ROOT
        setattr(given, name, getattr(given, name) and getattr(given, name).resolve())
    given.work.mkdir(parents=True)
    try:
        if given.mb[0]:
            tokenization(given.work, given.mb, given.gpt2, given.megatron)
        if given.tokens:
            batches(given.work, given.tokens, SEQ)
    finally:
        shutil.rmtree(given.work)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
