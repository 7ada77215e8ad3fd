"""Vectors brought to the width of a table: by zeros, `project: pca` and `project: random`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_embed.parallel.collectives import stack_over_workers, sum_over_workers
from dist_embed.parallel.group import Group
from dist_embed.vectors.file import Vectors

_VECTORS_AT_ONCE = 2**12


@dataclass(frozen=True)
class Basis:
    """A linear map to another width.

    Attributes:
        origin: [D of the file], taken from a vector before.
        matrix: [D of the file, D].
    """

    origin: NDArray[np.float64]
    matrix: NDArray[np.float64]

    def project(self, vectors: Vectors) -> Vectors:
        """[n, D of the file] → [n, D]."""
        return ((vectors - self.origin) @ self.matrix).astype(np.float32)


class Moments:
    """Sums of which the main directions of some vectors follow.

    Args:
        width: of the vectors, D of the file.

    Attributes:
        count: vectors.
        total: [D of the file] their sum.
        squares: [D of the file, D of the file] sum of their outer products with themselves.
    """

    def __init__(self, width: int) -> None:
        self.count, self.total, self.squares = 0, np.zeros(width), np.zeros((width, width))

    def add(self, vectors: Vectors) -> None:
        """Add some: [n, D of the file]. Not collective."""
        for first in range(0, len(vectors), _VECTORS_AT_ONCE):
            some = vectors[first : first + _VECTORS_AT_ONCE].astype(np.float64)
            self.count += len(some)
            self.total += some.sum(0)
            self.squares += some.T @ some

    def main_directions(self, width: int, group: Group) -> Basis:
        """The ``width`` directions in which the vectors of all workers vary most. Collective."""
        own = np.concatenate([[self.count], self.total, self.squares.ravel()])
        sums = sum_over_workers(torch.from_numpy(own).to(group.device), group).cpu()
        wide = len(self.total)
        mean = sums[1 : wide + 1] / max(1.0, float(sums[0]))
        covariance = sums[wide + 1 :].view(wide, wide) / max(1.0, float(sums[0]))
        covariance -= torch.outer(mean, mean)
        directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # largest first
        directions = directions[:, :width].to(group.device)
        # Machines may disagree on the directions' signs.
        return Basis(mean.numpy(), stack_over_workers(directions, group)[0].cpu().numpy())


def widened(vectors: Vectors, width: int) -> Vectors:
    """[n, D of the file] → [n, ``width``], by zeros: lengths and angles stay as they are."""
    return np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))


def random_basis(wide: int, width: int, *, seed: int) -> Basis:
    """A random map that keeps lengths and angles: to a larger width exactly, by orthonormal rows;
    to a smaller one on average, by normal values of variance 1 / ``width``.

    The same on every worker, and for every table of a run.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(wide, width, generator=generator, dtype=torch.float64)
    if wide <= width:
        matrix = torch.linalg.qr(matrix.T).Q.T
    else:
        matrix /= math.sqrt(width)
    return Basis(np.zeros(wide), matrix.numpy())
