"""Tables that start from a file of vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dist_embed.config.schema import Config
from dist_embed.data.prepare import read_counts, read_occurrences, sides_unknown
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.embedding.pretrained import TableStart
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.model.translation_tables import SIDE_OF_ROLE, sides_of_table
from dist_embed.parallel.errors import all_or_none
from dist_embed.storage import uri as storage
from dist_embed.training.table_settings import table_settings
from dist_embed.vectors.coverage import Coverage, coverage_name
from dist_embed.vectors.formats import open_file_of
from dist_embed.vectors.settings import PretrainedSection


def start_tables(
    config: Config,
    data: PreparedData,
    lookup: ShardedTables,
    tokenizers: Callable[[], dict[str, Tokenizer]],
    say: Callable[[str], None],
) -> dict[str, Coverage]:
    """Fill the tables that start from files. Collective.

    Args:
        config: the run's.
        data: its prepared data, which have the words' counts.
        lookup: the tables, with fresh rows.
        tokenizers: gives those of both sides; asked where a table starts from a file.
        say: takes worker 0's lines about what was found.

    Returns what each table has taken.

    Raises:
        UserError: a file cannot be used. The run must not go on.
    """
    role_of_table = {lookup.table_of[role]: role for role in SIDE_OF_ROLE}
    coverages: dict[str, Coverage] = {}
    for table, settings in table_settings(config).items():
        if settings.pretrained is None:
            continue
        sides = sides_of_table(config.model.share_embeddings, role_of_table[table])
        with all_or_none(lookup.group):
            tokenizer = tokenizers()[sides[0]]
        found = _start_table(
            config, data, settings.pretrained, lookup, table, tokenizer, sides, say
        )
        for line in found.lines():
            say(line)
        coverages[table] = found
    lookup.after_writing()
    return coverages


def _start_table(
    config: Config,
    data: PreparedData,
    wanted: PretrainedSection,
    lookup: ShardedTables,
    table: str,
    tokenizer: Tokenizer,
    sides: list[str],
    say: Callable[[str], None],
) -> Coverage:
    counts: NDArray[np.int64] | None = None
    with all_or_none(lookup.group):
        file = open_file_of(wanted)
        if lookup.group.is_first:
            counts = read_occurrences(data, sides)
            if counts is None:
                say(f"{sides_unknown(data.folder_uri)}; coverage is that of the words of both")
                counts = read_counts(data, sides[0])
    start = TableStart(
        lookup.weight(table),
        lookup.specs[table],
        lookup.shards[table],
        lookup.group,
        tokenizer,
        wanted,
        seed=config.run.seed,
        fresh_scale=lookup.initial_scale[table],
    )
    return start.fill(file, counts)


def write_coverages(run_uri: str, coverages: dict[str, Coverage]) -> None:
    """Keep what was found in the run's folder. Not collective."""
    for table, coverage in coverages.items():
        storage.write_text(storage.join(run_uri, coverage_name(table)), coverage.to_json())
