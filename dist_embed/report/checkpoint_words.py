"""Neighbours of words in the checkpoints that a run has. Reads tables, and imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.errors import UserError
from dist_embed.explore.nearest import neighbors
from dist_embed.explore.table import RunTable
from dist_embed.report.words import Words

NEIGHBORS_SHOWN = 8


def neighbors_in_checkpoints(
    uri: str, steps: Sequence[int], words: Sequence[str], missing: list[str]
) -> list[Words]:
    """The nearest words of each of ``words`` of the source side, by step.

    A checkpoint that cannot be read, as one that a training prunes meanwhile, is named in
    ``missing``, and so is a word that is not in the vocabulary, or untrained: it is left out.
    """
    found: dict[str, dict[int, list[tuple[str, float]]]] = {word: {} for word in words}
    for step in steps:
        try:
            table = RunTable(uri, "source", step)
            for word in [*found]:
                if problem := _problem(table, word):
                    missing.append(f"no neighbours of {word!r}: {problem}")
                    del found[word]
            near = neighbors(table, [*found], NEIGHBORS_SHOWN) if found else {}
        except CheckpointError as exc:
            missing.append(f"no neighbours of step {step:,}: {exc}")
            continue
        for word, of_step in near.items():
            found[word][step] = of_step
    return [Words(word, by_step) for word, by_step in found.items()]


def _problem(table: RunTable, word: str) -> str:
    """Why it has no neighbours; nothing where it has some."""
    try:
        table.trained_id_of(word)
    except UserError as exc:
        return str(exc)
    return ""
