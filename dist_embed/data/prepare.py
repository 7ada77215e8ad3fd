"""From corpora to a tokenizer, a vocabulary with counts, and token shards.

``data.json`` is written last: a folder without it is not prepared. Preparing again with the same
settings gives the same bytes, except for ``unigram``, whose trainer in the library sums in an order
that changes from run to run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dist_embed.data.block_index import ShardBlocks, index_name, write_index
from dist_embed.data.corpus import ParallelText, Skipped, read_pairs
from dist_embed.data.cut_text import check_pieces
from dist_embed.data.encoding import EncodedBlock, encoding_pool
from dist_embed.data.executor import Executor
from dist_embed.data.finished_shards import finished_shards
from dist_embed.data.inputs import Inputs, check_unchanged, record_inputs
from dist_embed.data.proof import FileInfo, read_table
from dist_embed.data.scratch import scratch_folder
from dist_embed.data.settings import DataSection, TokenizerSection
from dist_embed.data.text_form import TextForm
from dist_embed.data.token_shards import INDEX_NAME, REMEDY, PreparedData, Split
from dist_embed.data.tokenizer import END, Tokenizer
from dist_embed.data.tokenizer_files import write_tokenizers
from dist_embed.data.vocabulary import Vocabularies, learn_vocabularies
from dist_embed.errors import UserError
from dist_embed.observe.events import Watch, unwatched
from dist_embed.storage import uri as storage
from dist_embed.storage.parquet import write_parquet


def prepare_data(
    data_uri: str,
    corpora: dict[str, ParallelText],
    data: DataSection,
    tokenizer: TokenizerSection,
    form: TextForm,
    *,
    settings: dict[str, Any],
    say: Callable[[str], None],
    executor: Executor,
    watch: Watch = unwatched,
    earlier: Sequence[str] = (),
    generated: bool = False,
) -> PreparedData:
    """Prepare ``corpora`` (split name to text; ``train`` must be there) below ``data_uri``.

    Args:
        data_uri: where everything is written; nothing is there yet.
        corpora: the text of each split.
        data: pairs in a shard, and tokens in a training pair.
        tokenizer: how to learn the tokenizers from the training text.
        form: what text is brought to, where ``tokenizer`` leaves it open.
        settings: kept in ``data.json``, to tell whether the folder fits a configuration.
        say: takes lines of progress.
        executor: who counts and encodes.
        watch: shows how far the text has been read, here and for digests.
        earlier: folders of preparations that have ended too early; shards that they have finished
            are taken over where they are those that would be made here.
        generated: the corpora were made for this; otherwise their files are recorded.

    Raises:
        UserError: a corpus that cannot be used; ``data.json`` is then not written.
    """
    train = corpora["train"]
    for text in corpora.values():
        _check_readable(text)
    check_pieces(train, tokenizer.pieces, say)
    inputs = {} if generated else record_inputs(corpora, say, watch)
    with scratch_folder("dist_embed-vocabulary-", "the vocabulary is learned") as folder:
        vocabularies = learn_vocabularies(train, tokenizer, form, executor, say, folder, watch)
        return _encoded(
            data_uri, corpora, data, tokenizer, vocabularies, inputs,
            settings=settings, say=say, executor=executor, watch=watch, earlier=earlier,
        )  # fmt: skip


def _encoded(
    data_uri: str, corpora: dict[str, ParallelText], data: DataSection,
    tokenizer: TokenizerSection, vocabularies: Vocabularies, inputs: Inputs, *,
    settings: dict[str, Any], say: Callable[[str], None], executor: Executor,
    watch: Watch, earlier: Sequence[str],
) -> PreparedData:  # fmt: skip
    """`prepare_data` once there are vocabularies, whose tables lie in temporary files."""
    tokenizers = vocabularies.tokenizers
    tokenizer_files, digests = write_tokenizers(data_uri, tokenizers)
    recipe = json.dumps(digests)
    splits: dict[str, Split] = {}
    files: dict[str, FileInfo] = {}
    occurrences = {side: np.zeros(t.size, dtype=np.int64) for side, t in tokenizers.items()}
    with encoding_pool(tokenizers["source"], tokenizers["target"], executor) as pool:
        for name, text in corpora.items():
            say(f"encoding {name}")
            rule = data if name == "train" else None
            skipped = Skipped()
            encoded = pool.write_shards(
                watch(f"encoding {name}", read_pairs(text, skipped)), data_uri, name,
                shard_sentences=data.shard_sentences, rule=rule,
                oov_buckets=tokenizer.oov_buckets, recipe=recipe,
                finished=finished_shards(earlier, name),
            )  # fmt: skip
            splits[name], blocks, taken_over = _gathered(encoded, occurrences if rule else {})
            splits[name].dropped_wrong = skipped.count
            if skipped.count:
                say(
                    f"{skipped.count:,} rows of {name} cannot be read and are skipped; the first: "
                    f"{skipped.first}"
                )
            if taken_over:
                say(
                    f"{taken_over:,} of {len(blocks):,} shards had been finished by a preparation "
                    "that was ended: they were taken over"
                )
            files |= write_blocks(data_uri, splits[name], blocks)
    _require_pairs(splits["train"], data)
    check_unchanged(inputs)
    files |= tokenizer_files
    for side, learned in tokenizers.items():
        files |= write_vocabulary(
            data_uri, side, learned, vocabularies.counts[side], occurrences[side]
        )
    prepared = PreparedData(
        settings=settings,
        vocabulary_size={side: learned.size for side, learned in tokenizers.items()},
        shared_vocabulary=tokenizer.shared,
        splits=splits,
        inputs=inputs,
        files=files,
        digests=digests,
        word_tables=tokenizer.kind == "word",
        folder_uri=data_uri,
    )
    storage.write_text(storage.join(data_uri, INDEX_NAME), prepared.to_json())
    return prepared


def _require_pairs(train: Split, data: DataSection) -> None:
    if train.sentences:
        return
    unlike = (
        f", {train.dropped_ratio} had sides less alike in length than "
        f"data.max_length_ratio={data.max_length_ratio}"
    )
    raise UserError(
        f"no training pair is left: {train.dropped_empty} had an empty side, "
        f"{train.dropped_long} were longer than data.max_tokens={data.max_tokens}"
        + (unlike if data.max_length_ratio is not None else "")
    )


def read_counts(data: PreparedData, side: str) -> NDArray[np.int64]:
    """[V] how often each id of ``source`` or ``target`` occurs in the training text, on both sides
    where they have one vocabulary: what ids are ordered by.

    Raises UserError where the file is not the one that was written.
    """
    return _read_counts(data, side, _vocabulary_name(side), "vocabulary")


def read_occurrences(data: PreparedData, sides: Sequence[str]) -> NDArray[np.int64] | None:
    """[V] how often each id occurs on the sides that are asked for (both have one vocabulary then),
    in the training pairs that were kept: an id that has 0 is never trained as a word of theirs.

    None where the data do not tell their sides apart: of a shared vocabulary, and prepared before
    there were such counts. Raises as `read_counts`.
    """
    if all(_occurrences_name(side) in data.files for side in sides):
        of_sides = [_read_counts(data, s, _occurrences_name(s), "counts of words") for s in sides]
        return functools.reduce(np.add, of_sides)
    if data.shared_vocabulary and len(sides) == 1:
        return None
    return read_counts(data, sides[0])


def read_predicted(data: PreparedData) -> NDArray[np.int64]:
    """[V] how often each id of the target side is to be predicted in an epoch: its words, and an
    end mark for each pair.

    Raises as `read_counts`, and UserError where the data do not tell their sides apart.
    """
    counts = read_occurrences(data, ["target"])
    if counts is None:
        raise UserError(f"{sides_unknown(data.folder_uri)}. model.batch_negatives needs to know")
    counts = counts.copy()
    counts[END] = data.splits["train"].sentences
    return counts


def sides_unknown(data_uri: str) -> str:
    """A line for the user, where `read_occurrences` gives None."""
    return (
        f"{data_uri} was prepared before words were counted for each side: it is read, but which "
        "words belong to which side is not known. Prepared again, it is"
    )


def _read_counts(data: PreparedData, side: str, name: str, what: str) -> NDArray[np.int64]:
    table = read_table(
        storage.join(data.folder_uri, name), ["count"], data.files.get(name),
        what=what, remedy=REMEDY, rows=data.vocabulary_size[side],
    )  # fmt: skip
    counts: NDArray[np.int64] = table.column("count").to_numpy()
    return counts


def _vocabulary_name(side: str) -> str:
    return f"vocabulary.{side}.parquet"


def _occurrences_name(side: str) -> str:
    return f"occurrences.{side}.parquet"


def _check_readable(text: ParallelText) -> None:
    skipped = Skipped()
    if next(read_pairs(text, skipped), None) is None:
        files = ", ".join(text.pairs or (*text.source, *text.target))
        wrong = (
            f" ({skipped.count:,} rows cannot be read: {skipped.first})" if skipped.count else ""
        )
        raise UserError(f"the corpus is empty: {files}{wrong}")


def _gathered(
    encoded: Iterable[EncodedBlock], occurrences: dict[str, NDArray[np.int64]]
) -> tuple[Split, list[ShardBlocks], int]:
    """A split of the shards that are being written, and how many of them were taken over; adds to
    ``occurrences`` of sides how often ids occur in it.
    """
    split, blocks, taken_over = Split(), [], 0
    for block in encoded:
        split.shards.append(block.info)
        blocks.append(block.blocks)
        taken_over += block.taken_over
        for what, number in asdict(block.left_out).items():
            setattr(split, what, getattr(split, what) + number)
        for side, total in occurrences.items():
            ids, counts = block.occurrences[side]
            known = ids < len(total)  # hashed words have no id of their own
            total[ids[known]] += counts[known]
    return split, blocks, taken_over


def write_blocks(data_uri: str, split: Split, blocks: list[ShardBlocks]) -> dict[str, FileInfo]:
    """The index of a split's blocks; returns what proves it."""
    names = [shard.name for shard in split.shards]
    name = index_name(names[0])
    return {name: write_index(storage.join(data_uri, name), names, blocks)}


def write_vocabulary(
    data_uri: str,
    side: str,
    tokenizer: Tokenizer,
    counts: NDArray[np.int64],
    occurrences: NDArray[np.int64],
) -> dict[str, FileInfo]:
    """A table of columns ``token`` and ``count`` whose row is the id, and one of the occurrences on
    this side; returns what proves the files.
    """
    files = {}
    for name, table in (
        (_vocabulary_name(side), pa.table({"token": tokenizer.column(), "count": counts})),
        (_occurrences_name(side), pa.table({"count": occurrences})),
    ):
        files[name] = FileInfo.of(write_parquet(storage.join(data_uri, name), table))
    return files
