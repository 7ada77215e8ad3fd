"""The sentences of a step, and whether two steps are the same."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dist_embed.data.batch import Batch
from dist_embed.data.loader import StepBatches
from dist_embed.data.tokenizer import END
from tests.unit.small_corpus import Sentence


def epoch_of(steps: Iterator[StepBatches], epoch: int = 0) -> list[StepBatches]:
    """Steps up to the end of ``epoch``."""
    found = []
    for step in steps:
        found.append(step)
        if step.after.epoch > epoch:
            return found
    raise AssertionError("a loader never ends")


def source_rows(batch: Batch) -> list[list[int]]:
    """Rectangle by rectangle."""
    sizes = [count * longest for count, longest, _ in batch.rectangles]
    parts = zip(batch.source.split(sizes), batch.rectangles, strict=True)
    return [r for part, (count, longest, _) in parts for r in part.view(count, longest).tolist()]


def target_rows(batch: Batch) -> list[list[int]]:
    sizes = [count * longest for count, _, longest in batch.rectangles]
    parts = zip(batch.target_input.split(sizes), batch.rectangles, strict=True)
    return [r for part, (count, _, longest) in parts for r in part.view(count, longest).tolist()]


def content(batch: Batch) -> list[Sentence]:
    """The id pairs of a batch, without marks and padding."""
    found, place = [], 0
    targets = batch.target_output.tolist()
    for row, length in zip(source_rows(batch), batch.source_lengths.tolist(), strict=True):
        end = targets.index(END, place)
        found.append((tuple(row[: length - 1]), tuple(targets[place:end])))
        place = end + 1
    assert place == len(targets)
    return found


def step_content(step: StepBatches) -> list[Sentence]:
    return [sentence for batch in step.batches for sentence in content(batch)]


def same(left: StepBatches, right: StepBatches) -> bool:
    names = Batch.__dataclass_fields__.keys() - {"rectangles"}
    return (
        left.after == right.after
        and left.token_counts == right.token_counts
        and len(left.batches) == len(right.batches)
        and [b.rectangles for b in left.batches] == [b.rectangles for b in right.batches]
        and all(
            torch.equal(getattr(a, name), getattr(b, name))
            for a, b in zip(left.batches, right.batches, strict=True)
            for name in names
        )
    )
