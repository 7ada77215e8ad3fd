"""How fast a sharded table starts from a file of vectors, and what memory that takes."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from dist_embed.bench.memory import peak_bytes, reset_peak
from dist_embed.cluster.local import launch_local
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.embedding.pretrained import Entries, TableStart
from dist_embed.observe.events import Event
from dist_embed.observe.quiet import private_log_folder, redirect_output
from dist_embed.parallel.allocator import keep_freed_memory
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import joined_group
from dist_embed.vectors.fasttext_binary import MAGIC
from dist_embed.vectors.file import VectorFile
from dist_embed.vectors.formats import open_vectors
from dist_embed.vectors.match import VocabularyKeys
from dist_embed.vectors.settings import PretrainedSection
from dist_embed.vectors.write import Block, write_vectors

Way = Literal["each its part", "everyone all"]
WAYS: tuple[Way, ...] = ("each its part", "everyone all")
LOG_FOLDER = private_log_folder("bench")
TIMEOUT_SECONDS = 900.0
_BLOCK_ROWS = 10_000
Say = Callable[[str], None]
MeasuredFormat = Literal["glove", "word2vec", "word2vec-bin", "fasttext-bin"]

FASTTEXT_BUCKETS = 500_000


class EveryoneReadsAll(TableStart):
    """The other way: every worker reads the whole file and parses the vectors of its own rows;
    nothing is exchanged.
    """

    def wanted(self, file: VectorFile, keys: VocabularyKeys) -> Iterator[Entries]:
        """The entries of own rows."""
        shard = self.shard
        for segment in file.segments(0, 1):
            found = keys.match(segment.words)
            rows = self.rows_of(found.ids)
            mine = (rows >= shard.first_row) & (rows < shard.end_row)
            yield Entries(
                rows[mine],
                found.ranks[mine],
                segment.origin + found.places[mine],
                found.counted[mine],
                segment.vectors(found.places[mine].tolist()),
            )
            self.count_entries(len(segment.words) if self.is_first else 0, 0)


def measure_pretrained(
    folder: str, *, num_words: int, width: int, format: MeasuredFormat, num_workers: int,
    rounds: int, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Write a file of ``num_words`` vectors, and fill a table of as many words from it; all are
    found.

    Args:
        folder: where the file and the vocabulary are written.
        num_words: V, and vectors in the file.
        width: D.
        format: of the file.
        num_workers: W.
        rounds: times each way is measured, in turns.
        say: takes lines of progress.

    A fastText model is read by every worker in any case, so there is one way; its words have
    n-grams of three letters in `FASTTEXT_BUCKETS` buckets.

    Returns seconds and extra bytes of the fullest worker by way, and the sizes.
    """
    uri, vocabulary = f"{folder}/vectors", f"{folder}/tokenizer.json"
    say(f"writing {num_words:,} × {width} as {format}")
    if format == "fasttext-bin":
        _write_fasttext(uri, num_words, width)
    else:
        blocks = _random_blocks(num_words, width)
        write_vectors(uri, format, blocks, num_words=num_words, width=width)
    words = [f"{SPACE}{word}" for word in _words(0, num_words)]
    tokenizer = Tokenizer.from_words(words, lowercase=False, split_punctuation=False)
    Path(vocabulary).write_text(tokenizer.to_json(), encoding="utf-8")
    del words, tokenizer
    ways: tuple[Way, ...] = ("everyone all",) if format == "fasttext-bin" else WAYS
    found: dict[str, dict[str, list[float]]] = {
        way: {"seconds": [], "extra_bytes": []} for way in ways
    }
    for number in range(rounds):
        for way in ways:
            seconds, extra = launch_local(
                _measure, (way, uri, vocabulary, format, width), num_workers=num_workers,
                on_event=lambda event: say(event["text"]), log_folder=str(LOG_FOLDER),
            )  # fmt: skip
            found[way]["seconds"].append(seconds)
            found[way]["extra_bytes"].append(extra)
            say(f"round {number + 1}, {way}: {seconds:.1f} s")
    return {
        "words": num_words, "width": width, "format": format, "workers": num_workers,
        "file_bytes": os.path.getsize(uri), "ways": found,
        "shard_bytes": shard_of(num_words + 4, 0, num_workers).num_rows * width * 4,
        "rows_per_second": {
            way: num_words / median(values["seconds"]) for way, values in found.items()
        },
    }  # fmt: skip


def _measure(
    way: Way, uri: str, vocabulary: str, format: MeasuredFormat, width: int,
    emit: Callable[[Event], None],
) -> tuple[float, float]:  # fmt: skip
    """Seconds, and bytes of the fullest worker beyond shard and vocabulary."""
    torch.set_num_threads(1)
    keep_freed_memory()
    redirect_output(LOG_FOLDER / f"worker-{os.environ['RANK']}.log")
    with joined_group("cpu", TIMEOUT_SECONDS) as group:
        tokenizer = Tokenizer.from_json(Path(vocabulary).read_text(encoding="utf-8"))
        spec = TableSpec("source", tokenizer.size, width)
        shard = shard_of(spec.num_rows, group.rank, group.num_workers)
        weight = torch.zeros(shard.num_rows, width)
        weight.fill_(1.0)  # so that its memory is there before
        changed = way == "everyone all" and format != "fasttext-bin"
        kind = EveryoneReadsAll if changed else TableStart
        settings = PretrainedSection(uri=uri)
        start = kind(weight, spec, shard, group, tokenizer, settings, seed=1, fresh_scale=1.0)
        sum_over_workers(torch.zeros(1), group)
        before = reset_peak()
        started = time.perf_counter()
        file = open_vectors(uri, format)
        counts = np.ones(tokenizer.size, dtype=np.int64) if group.is_first else None
        coverage = start.fill(file, counts)
        sum_over_workers(torch.zeros(1), group)
        seconds = time.perf_counter() - started
        assert coverage.entries == coverage.words
        assert sum(coverage.found_words.values()) == coverage.words
        extra = torch.tensor(float(peak_bytes() - before))
        torch.distributed.all_reduce(
            extra, torch.distributed.ReduceOp.MAX, group=group.process_group
        )
        return seconds, float(extra)


def _words(first: int, end: int) -> list[str]:
    return [f"w{number:x}" for number in range(first, end)]


def _write_fasttext(uri: str, num_words: int, width: int) -> None:
    """A model of random values."""
    with open(uri, "wb") as file:
        # Magic, version; width, window, epochs, least count, negatives, n-grams of words, loss,
        # model, buckets, shortest and longest n-gram, updates; sampling threshold.
        settings = (width, 5, 5, 1, 5, 1, 1, 2, FASTTEXT_BUCKETS, 3, 3, 100, 1e-4)
        file.write(MAGIC + struct.pack("<i12id", 12, *settings))
        file.write(struct.pack("<iiiqq", num_words, num_words, 0, num_words, -1))
        for word in _words(0, num_words):
            file.write(word.encode() + b"\0" + struct.pack("<qb", 1, 0))
        rows = num_words + FASTTEXT_BUCKETS
        file.write(struct.pack("<?qq", False, rows, width))
        generator = np.random.default_rng(1)
        for first in range(0, rows, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, rows - first)
            file.write(generator.standard_normal((count, width), dtype=np.float32).tobytes())


def _random_blocks(num_words: int, width: int) -> Iterator[Block]:
    generator = np.random.default_rng(1)
    for first in range(0, num_words, _BLOCK_ROWS):
        end = min(first + _BLOCK_ROWS, num_words)
        # Five decimals, as GloVe's files have them.
        vectors = np.round(generator.standard_normal((end - first, width)) * 0.4, 5)
        counts = np.zeros(end - first, dtype=np.int64)
        yield Block(_words(first, end), counts, vectors.astype(np.float32))
