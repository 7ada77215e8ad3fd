"""The sentences of one worker and micro-batch as tensors: rectangles of padded sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.token_shards import TokenPairs
from dist_embed.data.tokenizer import END, PAD, START

Indices = NDArray[np.int64]

# What a batch's vectors are looked up by; the model itself reads the others.
IDS = ("source", "target_input")
# Two rectangles become one where that adds no more padded tokens, of both sides together.
MERGE_TOKENS = 64


@dataclass(frozen=True)
class Batch:
    """The sentences of one worker and micro-batch; B may be 0.

    Attributes:
        source: [sum of b · S] ids of the source and its end mark, padded, rectangle by rectangle.
        source_lengths: [B].
        target_input: [sum of b · T] start mark and ids: what the decoder reads, padded.
        target_output: [n] ids and end mark: what it is to predict, without padding.
        token_positions: [n] where those lie in ``target_input``.
        rectangles: (b, S, T) of each: sentences, longest source, longest target. At least one.
    """

    source: Tensor
    source_lengths: Tensor
    target_input: Tensor
    target_output: Tensor
    token_positions: Tensor
    rectangles: tuple[tuple[int, int, int], ...]

    def sentence_of_token(self) -> Tensor:
        """[n] to which of the B sentences each token of ``target_output`` belongs."""
        count, _, length = torch.tensor(self.rectangles, device=self.token_positions.device).T
        ends, sentences = (count * length).cumsum(0), count.cumsum(0)
        which = torch.bucketize(self.token_positions, ends, right=True)
        before_end = ends[which] - 1 - self.token_positions
        return sentences[which] - 1 - before_end // length[which]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; from pinned memory the host does not wait for it."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))

    def changed(self, change: Callable[[Tensor], Tensor], but: tuple[str, ...] = ()) -> Batch:
        """The same batch with ``change`` of every tensor: pinned, or on another device. Those named
        in ``but`` stay as they are.
        """
        names = [name for name in self.__dataclass_fields__ if name not in (*but, "rectangles")]
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **tensors)


def merged(units: Sequence[Indices], lengths: tuple[Indices, Indices]) -> list[Indices]:
    """Bring units of nearly equal length together: a rectangle costs a GPU launches of its own.

    Args:
        units: the sentences of each.
        lengths: of both sides, end marks included, by sentence.

    Returns:
        The rectangles, the longest first; see `MERGE_TOKENS`.
    """
    sized = [(unit, int(lengths[0][unit].max()), int(lengths[1][unit].max())) for unit in units]
    sized.sort(key=lambda one: one[1] + one[2], reverse=True)
    groups: list[list[Indices]] = []
    count = source = target = 0
    for unit, unit_source, unit_target in sized:
        longest = max(source, unit_source), max(target, unit_target)
        added = count * (sum(longest) - source - target)
        added += len(unit) * (sum(longest) - unit_source - unit_target)
        if groups and added <= MERGE_TOKENS:
            groups[-1].append(unit)
            count, (source, target) = count + len(unit), longest
        else:
            groups.append([unit])
            count, source, target = len(unit), unit_source, unit_target
    return [np.concatenate(group) for group in groups]


def build_batch(tokens: TokenPairs, rectangles: Sequence[Indices]) -> Batch:
    """Pad the given sentences, those of each rectangle to its longest, into one `Batch`."""
    if not rectangles:
        rectangles = [np.zeros(0, np.int64)]
    sources, lengths, targets, outputs, places, shapes = [], [], [], [], [], []
    first = 0
    for sentences in rectangles:
        source, source_real = _padded(tokens.source_tokens, tokens.source_offsets, sentences)
        target, target_real = _padded(tokens.target_tokens, tokens.target_offsets, sentences)
        read = np.full_like(target, PAD)
        if target.size:
            read[:, 0] = START
            read[:, 1:] = np.where(target_real[:, 1:], target[:, :-1], PAD)
        sources.append(source.ravel())
        lengths.append(source_real.sum(1))
        targets.append(read.ravel())
        outputs.append(target[target_real])
        places.append(first + np.flatnonzero(target_real))
        shapes.append((len(sentences), source.shape[1], target.shape[1]))
        first += target.size
    return Batch(
        source=torch.from_numpy(np.concatenate(sources)),
        source_lengths=torch.from_numpy(np.concatenate(lengths)),
        target_input=torch.from_numpy(np.concatenate(targets)),
        target_output=torch.from_numpy(np.concatenate(outputs)),
        token_positions=torch.from_numpy(np.concatenate(places)),
        rectangles=tuple(shapes),
    )


def _padded(
    tokens: NDArray[np.int32], offsets: NDArray[np.int64], sentences: Indices
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The sentences with `END` behind each as [B, L] ids, and where they are real."""
    starts, lengths = offsets[sentences], offsets[sentences + 1] - offsets[sentences]
    longest = int(lengths.max()) + 1 if len(lengths) else 0
    place = np.arange(longest)
    inside = place < lengths[:, None]
    ids = np.full((len(sentences), longest), PAD, dtype=np.int64)
    ids[inside] = tokens[(starts[:, None] + place)[inside]]
    if longest:
        ids[np.arange(len(sentences)), lengths] = END
    return ids, place <= lengths[:, None]
