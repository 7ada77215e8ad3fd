"""Learning a bilingual lexicon from the training pairs.

Two words that are translations occur in the same sentence pairs more often than chance would have
it. How much more is measured by the log-likelihood ratio G² of their 2 × 2 table of sentence pairs
(Dunning 1993, Computational Linguistics 19:61), which is sound for rare words too (Moore 2004,
"On log-likelihood-ratios and the significance of rare events"). Only words that attract each other
count.

Pairs of words are counted by processes that each read one token shard at a time and leave sorted
counts on the local disk, then scored part by part, a part being the source words with the same
remainder. A process holds one block of pairs, or one part, whatever the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from dist_embed.data.lexicon import (
    FOLDER,
    FREQUENT_NAME,
    INDEX_NAME,
    LexiconIndex,
    fitting_lexicon,
    part_name,
)
from dist_embed.data.processes import processes
from dist_embed.data.proof import FileInfo
from dist_embed.data.scratch import scratch_folder
from dist_embed.data.token_shards import SIDES, PreparedData, ShardInfo, TokenPairs, read_tokens
from dist_embed.data.tokenizer import SPECIAL_TOKENS
from dist_embed.data.tokenizer_files import tokenizer_name
from dist_embed.observe.events import Watch, unwatched
from dist_embed.storage import uri as storage
from dist_embed.storage.local_file import named
from dist_embed.storage.parquet import write_parquet

# Pairs of words counted at once, and about those of a part: 16 bytes each, a few times over.
BLOCK_PAIRS = 4_000_000
_SOURCE_BITS = 32


@dataclass(frozen=True)
class _Statistics:
    """Where the counts of one learning lie: a folder on the local disk."""

    folder: Path
    parts: int
    block_pairs: int
    sentences: int
    source_words: int
    target_words: int


def ensure_lexicon(
    data_uri: str,
    data: PreparedData,
    *,
    translations: int,
    num_processes: int,
    say: Callable[[str], None],
    watch: Watch = unwatched,
    block_pairs: int = BLOCK_PAIRS,
) -> LexiconIndex:
    """The lexicon of prepared data; learned now where there is none that fits.

    Args:
        data_uri: the prepared data.
        data: what its ``data.json`` says.
        translations: K', translations kept of a source word.
        num_processes: 0: one per core.
        say: takes lines of progress.
        watch: shows how many shards have been counted, and parts scored.
        block_pairs: pairs of words that a process counts at once.
    """
    digest = data.digest()
    there = fitting_lexicon(data_uri, data, translations)
    if there is not None:
        return there
    say("learning the lexicon")
    storage.remove(storage.join(data_uri, FOLDER, INDEX_NAME))
    shards = data.splits["train"].shards
    with (
        scratch_folder("dist_embed-lexicon-", "the lexicon is learned") as folder,
        processes(num_processes) as pool,
    ):
        statistics = _Statistics(
            Path(folder), _num_parts(shards, block_pairs), block_pairs,
            data.splits["train"].sentences,
            data.vocabulary_size["source"], data.vocabulary_size["target"],
        )  # fmt: skip
        totals = [np.zeros(data.vocabulary_size[side], np.int64) for side in SIDES]
        arguments = ((statistics, data_uri, s, number) for number, s in enumerate(shards))
        counted = watch("counting pairs of words", pool.map(_count_shard, arguments), "shards")
        for occurrences in counted:
            for total, (words, counts) in zip(totals, occurrences, strict=True):
                total[words] += counts
        _save(statistics.folder / "source.npy", totals[0])
        _save(statistics.folder / "target.npy", totals[1])
        parts = ((statistics, data_uri, part, translations) for part in range(statistics.parts))
        scored = watch("scoring pairs of words", pool.map(_score_part, parts), "parts")
        written = list(scored)
    entries = sum(number for number, _ in written)
    index = LexiconIndex(
        translations, entries, statistics.parts, digest,
        frequent=_write_frequent(data_uri, totals[1]) if data.shared_vocabulary else None,
        files=tuple(file for _, file in written),
        tokenizers=_known_tokenizers(data),
    )  # fmt: skip
    storage.write_text(storage.join(data_uri, FOLDER, INDEX_NAME), index.to_json())
    say(f"lexicon: {entries:,} translations of {int((totals[0] > 0).sum()):,} source words")
    return index


def _known_tokenizers(data: PreparedData) -> dict[str, str]:
    if data.digests:
        return {side: digests["tokenizer"] for side, digests in data.digests.items()}
    names = {side: tokenizer_name(side) for side in SIDES}  # these were the library's files
    return {side: data.files[name].sha256 for side, name in names.items() if name in data.files}


def _write_frequent(data_uri: str, sentences: NDArray[np.int64]) -> FileInfo:
    """The list of `Lexicon.frequent_targets`, from the number of sentences that have each id."""
    order = np.argsort(-sentences, kind="stable")
    ids = np.concatenate([np.arange(len(SPECIAL_TOKENS)), order[sentences[order] > 0]])
    uri = storage.join(data_uri, FOLDER, FREQUENT_NAME)
    return FileInfo.of(write_parquet(uri, pa.table({"target": ids.astype(np.int32)})))


def log_likelihood_ratio(
    both: NDArray[np.int64], source: NDArray[np.int64], target: NDArray[np.int64], total: int
) -> NDArray[np.float64]:
    """G² of words that occur in ``source`` and ``target`` of ``total`` sentence pairs, and in
    ``both`` of them together; negative where they meet less often than by chance.
    """
    observed = np.stack(
        [both, source - both, target - both, total - source - target + both]
    ).astype(np.float64)
    rows = np.stack([source, source, total - source, total - source])
    columns = np.stack([target, total - target, target, total - target])
    expected = rows * (columns / total)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(observed > 0, observed * np.log(observed / expected), 0.0)
    ratio = 2 * terms.sum(0).clip(min=0)
    signed: NDArray[np.float64] = np.where(observed[0] > expected[0], ratio, -ratio)
    return signed


def _num_parts(shards: list[ShardInfo], block_pairs: int) -> int:
    """So many that a part is about a block: from the mean lengths, an upper bound of the pairs."""
    pairs = sum(s.source_tokens * s.target_tokens / max(1, s.sentences) for s in shards)
    return max(1, round(pairs / block_pairs))


def _count_shard(
    statistics: _Statistics, data_uri: str, shard: ShardInfo, number: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Leave the shard's counts of word pairs in the folder, ordered by part; returns for each side
    the words and in how many sentences they occur.
    """
    tokens = read_tokens(data_uri, [shard])
    sides = _words_of_sentences(tokens, statistics)
    for block, (source, target) in enumerate(_blocks(*sides, len(tokens), statistics.block_pairs)):
        keys, counts = np.unique(_pairs(source, target), return_counts=True)
        part = ((keys >> _SOURCE_BITS) % statistics.parts).astype(np.int32)
        order = np.argsort(part, kind="stable")
        path = statistics.folder / f"{number:05d}-{block:05d}"
        _save(path.with_suffix(".keys.npy"), keys[order])
        _save(path.with_suffix(".counts.npy"), counts[order].astype(np.int32))
        starts = np.searchsorted(part[order], np.arange(statistics.parts + 1))
        _save(path.with_suffix(".starts.npy"), starts)
    return [np.unique(words, return_counts=True) for _, words in sides]


def _save(path: Path, array: NDArray[np.signedinteger]) -> None:
    """As np.save, which does not say why a write failed."""
    with named(path), open(path, "wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


Words = tuple[NDArray[np.int64], NDArray[np.int64]]  # number of the sentence, word; both ordered


def _words_of_sentences(tokens: TokenPairs, statistics: _Statistics) -> tuple[Words, Words]:
    """Each side's distinct words of every sentence, without what is no word."""

    def words(ids: NDArray[np.int32], offsets: NDArray[np.int64], num_words: int) -> Words:
        sentence = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        real = (ids >= len(SPECIAL_TOKENS)) & (ids < num_words)
        keys = np.unique(sentence[real] << _SOURCE_BITS | ids[real])
        return keys >> _SOURCE_BITS, keys & ((1 << _SOURCE_BITS) - 1)

    return (
        words(tokens.source_tokens, tokens.source_offsets, statistics.source_words),
        words(tokens.target_tokens, tokens.target_offsets, statistics.target_words),
    )


def _blocks(
    source: Words, target: Words, sentences: int, block_pairs: int
) -> Iterator[tuple[Words, Words]]:
    """Sentences in their order: at most ``block_pairs`` pairs of words at once, or one sentence."""
    ends = np.arange(1, sentences + 1)
    source_ends = np.searchsorted(source[0], ends)
    target_ends = np.searchsorted(target[0], ends)
    pairs = np.cumsum(np.diff(source_ends, prepend=0) * np.diff(target_ends, prepend=0))
    first, done = 0, 0
    while first < sentences:
        last = max(first + 1, int(np.searchsorted(pairs, done + block_pairs, side="right")))
        yield _between(source, source_ends, first, last), _between(target, target_ends, first, last)
        first, done = last, int(pairs[last - 1])


def _between(words: Words, ends: NDArray[np.int64], first: int, last: int) -> Words:
    inside = slice(ends[first - 1] if first else 0, ends[last - 1])
    return words[0][inside], words[1][inside]


def _pairs(source: Words, target: Words) -> NDArray[np.int64]:
    """Every source word of a sentence with every target word of it: source << 32 | target."""
    start = np.searchsorted(target[0], source[0])
    count = np.searchsorted(target[0], source[0], side="right") - start
    before = np.cumsum(count) - count
    place = np.arange(int(count.sum())) - np.repeat(before - start, count)
    return np.repeat(source[1], count) << _SOURCE_BITS | target[1][place]


def _score_part(
    statistics: _Statistics, data_uri: str, part: int, translations: int
) -> tuple[int, FileInfo]:
    """Write the translations of the source words of one part; returns how many, and what proves
    the file.
    """
    keys, counts = _part_counts(statistics, part)
    source, target = keys >> _SOURCE_BITS, keys & ((1 << _SOURCE_BITS) - 1)
    of_source = np.load(statistics.folder / "source.npy", mmap_mode="r")
    of_target = np.load(statistics.folder / "target.npy", mmap_mode="r")
    score = log_likelihood_ratio(counts, of_source[source], of_target[target], statistics.sentences)
    attracted = score > 0
    source, target = source[attracted], target[attracted]
    score, counts = score[attracted], counts[attracted]
    order = np.lexsort((target, -score, source))
    rank = np.arange(len(order)) - np.searchsorted(source[order], source[order])
    kept = order[rank < translations]
    table = pa.table(
        {
            "source": source[kept].astype(np.int32),
            "target": target[kept].astype(np.int32),
            "score": score[kept].astype(np.float32),
            "sentences": counts[kept].astype(np.int32),
        }
    )
    uri = storage.join(data_uri, FOLDER, part_name(part))
    return len(kept), FileInfo.of(write_parquet(uri, table, compression="zstd"))


def _part_counts(statistics: _Statistics, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct pairs of words of a part and in how many sentences each occurs."""
    keys, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for path in sorted(statistics.folder.glob("*.keys.npy")):
        stem = path.name.removesuffix(".keys.npy")
        starts = np.load(path.with_name(f"{stem}.starts.npy"))
        here = slice(starts[part], starts[part + 1])
        keys.append(np.load(path, mmap_mode="r")[here])
        counts.append(np.load(path.with_name(f"{stem}.counts.npy"), mmap_mode="r")[here])
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    first = np.flatnonzero(np.diff(joined, prepend=-1))
    if not len(first):
        return joined, joined
    return joined[first], np.add.reduceat(np.concatenate(counts)[order], first)
