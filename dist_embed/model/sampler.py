"""Negative samples for the sampled output layer: which ids, and how probable each was.

Systematic sampling (Madow 1949, Annals of Mathematical Statistics 20:333): lay the ids end to end
on a line, each as long as its inclusion probability π, and take those that lie under the points u,
u + 1, u + 2, … for one u drawn from [0, 1). The probabilities add up to S, and none exceeds 1, so
exactly S ids are drawn, none twice, and id i is among them with probability π(i), exactly: there is
no rejection and no formula that only nearly holds. Ids are ordered by frequency, so every sample
holds as many frequent and as many rare ids as the probabilities ask for.

A draw depends on (seed, step) alone: every worker makes the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.arguments import real_number, shown, whole_number
from dist_embed.errors import UserError
from dist_embed.parallel.device import pinned

if TYPE_CHECKING:
    from typing_extensions import Self

_TAG = 0x5A3D  # keeps these draws apart from others of the same seed and step


@dataclass(frozen=True)
class Negatives:
    """One step's shared samples.

    Attributes:
        ids: [S] int64, ascending, all different.
        log_probability: [S] float32, log π of each.
    """

    ids: Tensor
    log_probability: Tensor

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in memory from which a GPU copies by itself."""
        return self.changed(pinned)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with ``change`` of every tensor."""
        tensors = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def place_of(self, ids: Tensor) -> Tensor:
        """Where each of ``ids`` lies among the negatives, or -1: same shape."""
        return place_among(self.ids, ids)

    @property
    def log_inclusion(self) -> Tensor:
        """[C] log of the probability that a word is a negative, of all C negatives."""
        return self.log_probability

    @property
    def inverse(self) -> Tensor:
        """[C] by what a logit is multiplied in the estimate of the sum of all: 1 / π."""
        return (-self.log_probability).exp()


def place_among(words: Tensor, ids: Tensor) -> Tensor:
    """Where each of ``ids`` lies among ascending ``words``, or -1: same shape."""
    if not words.numel():
        return torch.full_like(ids, -1)
    place = torch.searchsorted(words, ids).clamp_(max=words.numel() - 1)
    return torch.where(words[place] == ids, place, -1)


class Sampler(Protocol):
    """Draws negatives."""

    def draw(self, seed: int, step: int) -> Negatives:
        """The samples of one step."""

    def probability_of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """π of ``ids``."""


class LogUniformSampler:
    """p(i) ∝ log((i + 2) / (i + 1)): nearly Zipf's law over ids ordered by frequency.

    As many of the first ids as S asks for are always drawn (π = 1); the rest have π proportional to
    p. Everything is computed from closed forms, in memory of S numbers.

    Args:
        num_ids: V.
        num_samples: S, at most V.

    Raises:
        UserError: V is no number from 1 on, or S is not in 1 … V.
    """

    def __init__(self, num_ids: int, num_samples: int) -> None:
        self._num_ids = num_ids = whole_number("num_ids", num_ids, 1)
        self._num_samples = num_samples = whole_number("num_samples", num_samples, 1, num_ids)
        # The first h for which id h, drawn in proportion, would not be drawn more than once.
        h = np.arange(num_samples + 1, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            largest = (num_samples - h) * np.log1p(1 / (h + 1)) / np.log((num_ids + 1) / (h + 1))
        largest[h == num_samples] = 0.0
        self._certain = int(np.argmax(largest <= 1))

    @property
    def _log_range(self) -> float:
        return math.log((self._num_ids + 1) / (self._certain + 1))

    def draw(self, seed: int, step: int) -> Negatives:
        """The samples of one step."""
        certain, uncertain = self._certain, self._num_samples - self._certain
        ids = np.arange(self._num_samples, dtype=np.int64)
        if uncertain:
            points = _uniform(seed, step) + np.arange(uncertain)
            place = (certain + 1) * np.exp(points / uncertain * self._log_range)
            ids[certain:] = np.clip(place.astype(np.int64) - 1, certain, self._num_ids - 1)
        return _negatives(self, ids, self._num_ids)

    def probability_of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """π of ``ids``."""
        uncertain = self._num_samples - self._certain
        if not uncertain:
            return np.where(ids < self._certain, 1.0, 0.0)
        share = uncertain / self._log_range
        return np.where(ids < self._certain, 1.0, share * np.log1p(1 / (ids + 1.0)))


class UnigramSampler:
    """p(i) ∝ count(i)^α (Mikolov et al. 2013, arXiv 1310.4546, with α = 0.75).

    Ids that never occur count once, so that each is drawn now and then. Holds V float64.

    Args:
        counts: [V] how often each id occurs, of any type of whole numbers.
        power: α; 0 draws evenly.
        num_samples: S, at most V.

    Raises:
        UserError: a count, or α, is no number from 0 on, or S is not in 1 … V.
    """

    def __init__(self, counts: NDArray[np.int64], power: float, num_samples: int) -> None:
        counts = _checked(counts)
        power = real_number("power", power)
        num_samples = whole_number("num_samples", num_samples, 1, len(counts))
        with np.errstate(over="ignore"):
            probability = np.maximum(counts, 1).astype(np.float64) ** power
        if not np.isfinite(probability.sum()):
            raise UserError(
                f"power: {power:g} is not allowed: {counts.max():,}, the largest count, to that "
                "power is above what float64 holds"
            )
        certain = np.zeros(len(counts), dtype=np.bool_)
        while True:
            rest = probability[~certain].sum()
            scale = (num_samples - certain.sum()) / rest if rest else 0.0
            more = ~certain & (probability * scale >= 1)
            if not more.any():
                break
            certain |= more
        probability *= scale
        probability[certain] = 1.0
        self._num_samples = num_samples
        self._reached = np.cumsum(probability, out=probability)

    def draw(self, seed: int, step: int) -> Negatives:
        """The samples of one step."""
        points = _uniform(seed, step) + np.arange(self._num_samples)
        ids = np.searchsorted(self._reached, points, side="right").astype(np.int64)
        return _negatives(self, ids, len(self._reached))

    def probability_of(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """π of ``ids``."""
        before = np.where(ids > 0, self._reached[np.maximum(ids, 1) - 1], 0.0)
        return np.minimum(self._reached[ids] - before, 1.0)


def _checked(counts: Any) -> NDArray[np.int64]:
    """Counts as an array. Raises UserError."""
    try:
        found = np.asarray(counts)
    except (TypeError, ValueError, RuntimeError):  # ragged, or on a GPU
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise UserError(
            f"counts: {shown(counts)} of type {found.dtype} is not allowed: an array of a whole "
            "number for each id"
        )
    if found.min() < 0:
        first = int(np.argmax(found < 0))
        raise UserError(f"counts[{first}]: {found[first]} is not allowed: at least 0")
    return found


def _uniform(seed: int, step: int) -> float:
    seed, step = whole_number("seed", seed, 0), whole_number("step", step, 0)
    return float(np.random.default_rng([seed, step, _TAG]).random())


def _negatives(sampler: Sampler, ids: NDArray[np.int64], num_ids: int) -> Negatives:
    # Rounding may let a point fall on its neighbour's id where π is 1 or nearly.
    place = np.arange(len(ids))
    ids = np.maximum.accumulate(ids - place) + place
    ids = np.minimum(ids, num_ids - len(ids) + place)
    log_probability = np.log(sampler.probability_of(ids)).astype(np.float32)
    return Negatives(torch.from_numpy(ids), torch.from_numpy(log_probability))
