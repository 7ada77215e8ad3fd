"""A study's results in one file, ``results.parquet`` in its folder: a row for each run, and for
each size that is simulated. It is written anew whenever a run has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dist_embed.config.schema import Config
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import from_json
from dist_embed.storage.parquet import ParquetError, read_parquet, write_parquet

RESULTS_NAME = "results.parquet"

_SECONDS, _BYTES = pa.map_(pa.string(), pa.float64()), pa.map_(pa.string(), pa.int64())
# Name, type and meaning; all may be null but `state` and `levels`. Names of phases are those of
# `dist_embed.observe.phases.PHASES`.
_COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    # Which run it is.
    ("name", pa.string(), "of the run's folder, below `runs` in the study's; none if simulated"),
    # waiting: its turn has not come yet. skipped: by its plan it does not fit.
    ("state", pa.string(), "`waiting`, `done`, `failed`, `skipped` or `simulated`"),
    ("reason", pa.string(), "why it failed or was skipped"),
    ("seed", pa.int64(), "of the run"),
    ("levels", pa.map_(pa.string(), pa.string()), "factor to level, as the study names them"),
    ("scaling", pa.string(), "`strong` or `weak`, in a study of scaling"),
    ("workers", pa.int64(), "processes; on GPUs one device each"),
    ("threads_per_worker", pa.int64(), "of a worker on the CPU"),
    ("oversubscribed", pa.bool_(), "more threads of workers than cores; null: not known"),
    ("source_words", pa.int64(), "the source vocabulary; its bound before data are prepared"),
    ("target_words", pa.int64(), "likewise"),
    ("table_width", pa.int64(), "`embedding.width`"),
    ("model_width", pa.int64(), "`model.width`"),
    ("batch_tokens", pa.int64(), "`train.batch_tokens`, of all workers together"),
    ("uneven", pa.bool_(), "a worker's part of a step has fewer tokens than a sentence may have: "
     "workers have unlike many, which a plan takes for even"),
    ("output", pa.string(), "`exact` or `sampled`"),
    ("configuration", pa.string(), "all of it, as JSON"),
    # What was measured.
    ("steps", pa.int64(), "that were trained"),
    ("tokens_per_second", pa.float64(), "target tokens, median over log lines, by steps as in "
     "`step_seconds_p50`"),
    ("efficiency_base", pa.int64(), "workers that efficiencies are by: the fewest, with all else "
     "and the seed alike, that were measured, or, simulated, fit"),
    ("efficiency", pa.float64(), "tokens/s for each core (or GPU), by that of `efficiency_base`; "
     "null where oversubscribed"),
    ("step_seconds_p10", pa.float64(), "quantile over log lines, each the mean of its steps, from "
     "one to the next: with the agreement before it and its share of all checkpoints' stalls"),
    ("step_seconds_p50", pa.float64(), "median"),
    ("step_seconds_p90", pa.float64(), "quantile"),
    ("step_seconds_max", pa.float64(), "of the slowest log line but for the first after a start"),
    ("phases", _SECONDS, "phase to seconds a step of worker 0, mean; `rest`: in no phase"),
    ("data_wait_share", pa.float64(), "of a step's time, that worker 0 waits for its batch"),
    ("exchange_share", pa.float64(), "of a step's time, that a worker waits for others and what "
     "they send: mean over workers"),
    ("memory_bytes", pa.list_(pa.int64()), "the most that each worker has held: worker 0 until its "
     "end, with the last checkpoint, others until the last log line"),
    ("rows_requested", pa.list_(pa.float64()), "distinct rows a step, of each worker"),
    ("requested_balance", pa.float64(), "the most of these by their mean"),
    ("training_loss", pa.float64(), "nll of the last log line"),
    ("validation_loss", pa.float64(), "of the last validation; in a comparison, the best"),
    ("validation_bleu", pa.float64(), "of the last one that was translated"),
    ("test_bleu", pa.float64(), "where the study scores its runs"),
    ("measures", _SECONDS, "all measures of a comparison by their names"),
    # Where.
    ("device", pa.string(), "of the workers"),
    ("cores", pa.int64(), "of the machine that called for the run"),
    ("memory_gib", pa.float64(), "likewise"),
    ("platform", pa.string(), "likewise"),
    ("python", pa.string(), "its version"),
    ("versions", pa.map_(pa.string(), pa.string()), "package to version"),
    # What `dist_embed.planning` expected of the same configuration, before it was run.
    ("planned_machine", pa.string(), "name of the machine file; what a simulation rests on"),
    ("planned_source", pa.string(), "where the figures of that machine are from"),
    ("planned_fits", pa.bool_(), "whether memory suffices, and `train` would start it; null: not "
     "known"),
    ("planned_refused", pa.bool_(), "whether `train` would not, whatever memory there is"),
    ("planned_tokens_per_second", pa.float64(), "target tokens"),
    ("planned_efficiency", pa.float64(), "as `efficiency`, of planned tokens/s"),
    ("planned_step_seconds", pa.float64(), "from one to the next, with the wait for the worker "
     "that is asked for most rows, for data and for checkpoints"),
    ("planned_phases", _SECONDS, "phase to seconds a step, which add up to `planned_step_seconds`"),
    ("planned_memory_bytes", pa.int64(), "of the worker that holds most"),
    ("planned_memory", _BYTES, "what for, to bytes of that worker"),
    ("planned_exchange_bytes", pa.float64(), "that a worker sends in a step"),
    ("planned_distinct_rows", pa.float64(), "a step, of a worker"),
    ("planned_served_balance", pa.float64(), "rows that the worker is asked for "
     "which is asked for most, by the mean: of rows that it holds, not, as `requested_balance`, of "
     "those that it asks for; runs do not measure it"),
    ("planned_checkpoint_seconds", pa.float64(), "of writing one"),
    ("planned_bottleneck", pa.string(), "in words"),
    ("plan", pa.string(), "all of it, as JSON; of runs that fit without what would change it"),
)  # fmt: skip
# Each field's metadata say what it means.
SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"meaning": meaning}) for name, kind, meaning in _COLUMNS]
)


def described(
    config: Config, levels: Mapping[str, str], workers: int | None = None
) -> dict[str, Any]:
    """The columns that say which run it is, but for its name and state.

    ``workers``: instead of those of the configuration.
    """
    workers = workers or config.cluster.max_workers
    tokens = config.train.batch_tokens
    return {
        "seed": config.run.seed,
        "levels": dict(levels),
        "scaling": levels.get("scaling"),
        "workers": workers,
        "source_words": config.tokenizer.vocab_size,
        "target_words": config.tokenizer.vocab_size,
        "table_width": config.embedding.width,
        "model_width": config.model.width,
        "batch_tokens": tokens,
        "uneven": tokens / (workers * config.train.accumulate) < config.data.max_tokens,
        "output": config.model.output,
        "configuration": config.model_dump_json(),
    }


def write_results(folder: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a study's rows; columns that one lacks are null. Raises OSError."""
    write_parquet(
        storage.join(folder, RESULTS_NAME), pa.Table.from_pylist(list(rows), schema=SCHEMA)
    )


def read_results(folder: str) -> list[dict[str, Any]]:
    """The rows of the study in a folder, maps as dictionaries. Columns that the file lacks, which a
    later version has added, are null.

    Raises:
        FileNotFoundError: there is no such file.
        ParquetError: it is damaged, or none that was written here.
    """
    there = read_parquet(storage.join(folder, RESULTS_NAME))
    for name in ("state", "levels"):
        if name not in there.column_names or there[name].null_count:
            raise ParquetError(f"not every row has a {name!r}")
    try:
        table = pa.table(
            [there[field.name].cast(field.type) if field.name in there.column_names
             else pa.nulls(len(there), field.type) for field in SCHEMA], schema=SCHEMA,
        )  # fmt: skip
    except pa.ArrowException as exc:
        raise ParquetError(str(exc)) from exc
    maps = [field.name for field in SCHEMA if pa.types.is_map(field.type)]
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for name in maps:
            row[name] = None if row[name] is None else dict(row[name])
    return rows


# To be said where no row has a validation's figures.
NO_TEXT = "No loss of a validation and no BLEU: words of data.words have no text to be translated."


def have_no_text(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all runs were trained on words without a text."""
    return bool(rows) and all(_has_words_alone(row["configuration"]) for row in rows)


def _has_words_alone(configuration: str | None) -> bool:
    try:
        return bool(from_json(configuration or "{}")["data"]["words"])
    except (ValueError, LookupError, TypeError):  # of another version, or damaged
        return False


def columns_table() -> str:
    """All columns, for the page of keys, in Markdown."""
    lines = ["| column | type | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {kind} | {meaning} |" for name, kind, meaning in _COLUMNS]
    return "\n".join(lines) + "\n"
