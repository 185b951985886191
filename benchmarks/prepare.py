"""Tokens per second of `lit-cpt prepare`, from files on disk to a published source, against bare `tokenizers`.

The control encodes the same documents, already in memory, with `encode_batch` and all its threads; it
writes nothing. The arms alternate in one run, on the same cores, with the same tokenizer.

    python benchmarks/prepare.py [--quick] [--json FILE] [--tokenizer DIR] [--megabytes N]
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from measure import alternate, parser, ratios, show, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BATCH = 1000  # documents per call of the control, as in `datasets.map(batched=True)`
COMMAND = """
import sys
from lit_cpt.prepare import prepare
print(prepare(input=[sys.argv[1]], tokenizer=sys.argv[2], output=sys.argv[3]).train.tokens)
"""


def documents(bytes_wanted: int) -> list[str]:
    """Python sources of the standard library, repeated with a changed first line, until there are enough bytes."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    paths = [path for path in paths if "site-packages" not in path.parts]
    sources = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    sources = [source for source in sources if source.strip()]
    texts, size, copy = [], 0, 0
    while size < bytes_wanted:
        for source in sources:
            texts.append(f"# copy {copy}\n{source}")
            size += len(source)
            if size >= bytes_wanted:
                break
        copy += 1
    return texts


def train_tokenizer(texts: list[str], folder: Path) -> Path:
    """A byte-level BPE tokenizer of 32,000 tokens, trained on some of the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[::4][:400], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def control(tokenizer: Path, texts: list[str]) -> float:
    """Tokens per second of `encode_batch`."""
    bare = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    begin = time.perf_counter()
    tokens = 0
    for first in range(0, len(texts), BATCH):
        encodings = bare.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in encodings)
    return tokens / (time.perf_counter() - begin)


def ours(tokenizer: Path, corpus: Path, output: Path, texts: int) -> float:
    """Tokens per second of the whole command; EOS tokens are not counted, the control has none."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", COMMAND, str(corpus), str(tokenizer), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    manifest = json.loads((output / "manifest.json").read_bytes())
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] == texts
    return (manifest["train"]["tokens"] + manifest["validation"]["tokens"] - texts) / seconds


def main() -> None:
    accepted = parser(__doc__)
    accepted.add_argument("--tokenizer", metavar="DIR", help="folder of a tokenizer (default: one trained here)")
    accepted.add_argument("--megabytes", type=int, help="size of the corpus (default 200, quick 100)")
    settings = accepted.parse_args()
    megabytes = settings.megabytes or (100 if settings.quick else 200)
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), itertools.count()
        texts = documents(megabytes * 1_000_000)
        tokenizer = Path(settings.tokenizer) if settings.tokenizer else train_tokenizer(texts, folder / "tokenizer")
        corpus = folder / "corpus.jsonl"
        with open(corpus, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        found = alternate({
            "tokenizers": lambda: control(tokenizer, texts),
            "lit-cpt": lambda: ours(tokenizer, corpus, folder / f"source-{next(numbers)}", len(texts)),
        }, 2 if settings.quick else 3)
    show(f"tokens per second, {megabytes} MB of Python sources", found, "{:,.0f}")
    shares = ratios(found, "lit-cpt", "tokenizers")
    show("", {"lit-cpt / tokenizers": shares})
    write(settings.json, {"prepare.tokens_ratio": statistics.median(shares)}, ("litdata", "tokenizers", "transformers"))


if __name__ == "__main__":
    main()
