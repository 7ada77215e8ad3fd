"""Neighbours of words in the checkpoints that a run has. Reads tables, and imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.explore.nearest import neighbors
from dist_embed.explore.table import RunTable
from dist_embed.report.words import Words

NEIGHBORS_SHOWN = 8


def neighbors_in_checkpoints(
    uri: str, steps: Sequence[int], words: Sequence[str], missing: list[str]
) -> list[Words]:
    """The nearest words of each of ``words`` of the source side, by step.

    A checkpoint that cannot be read, as one that a training prunes meanwhile, is named in
    ``missing``. Raises UserError for a word that is not in the vocabulary, or untrained.
    """
    found: dict[str, dict[int, list[tuple[str, float]]]] = {word: {} for word in words}
    for step in steps:
        try:
            near = neighbors(RunTable(uri, "source", step), words, NEIGHBORS_SHOWN)
        except CheckpointError as exc:
            missing.append(f"no neighbours of step {step:,}: {exc}")
            continue
        for word, of_step in near.items():
            found[word][step] = of_step
    return [Words(word, by_step) for word, by_step in found.items()]
