"""Words on a plane: vectors of any width brought to two, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dist_embed.installed import require
from dist_embed.observe.plot import GREY, INK, plot_into

Method = Literal["pca", "tsne"]
LEAST_WORDS = 4
_PERPLEXITY = 30.0  # scikit-learn's default; it must stay below the number of words
_LABEL_POINTS = 6


def flat_map(vectors: Tensor, method: Method, seed: int) -> NDArray[np.float64]:
    """Where each word lies: [n, 2]. Words are near when their vectors point the same way.

    ``pca``: the two directions in which the vectors of unit length vary most. ``tsne`` (van der
    Maaten and Hinton 2008, by scikit-learn, started from PCA): neighbours stay neighbours, while
    distances between groups mean little.

    Args:
        vectors: [n, D], n at least `LEAST_WORDS`.
        method: ``pca`` or ``tsne``, see above.
        seed: equal seeds give equal maps with one version of the library.
    """
    unit = functional.normalize(vectors.double())
    centred = unit - unit.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    # The sign of a direction is arbitrary: its largest coordinate is made positive.
    largest = flat.abs().argmax(0)
    flat = flat * torch.sign(flat[largest, torch.arange(flat.shape[1])])
    if flat.shape[1] < 2:  # vectors of width 1
        flat = functional.pad(flat, (0, 2 - flat.shape[1]))
    if method == "pca":
        return flat.numpy()
    require("sklearn")
    from sklearn.manifold import TSNE

    start = flat / flat[:, 0].std().clamp(min=1e-12) * 1e-4  # as scikit-learn scales its own
    places = TSNE(
        init=start.numpy().astype(np.float32), random_state=seed,
        perplexity=min(_PERPLEXITY, (len(unit) - 1) / 3), metric="euclidean",
    ).fit_transform(unit.float().numpy())  # fmt: skip
    return np.asarray(places, dtype=np.float64)


def draw_map(path: str, places: NDArray[np.float64], words: Sequence[str], title: str) -> None:
    """A picture: a dot for each word, and the words that find room, the first ones first.

    Args:
        path: an SVG or PNG file.
        places: [n, 2].
        words: n of them, the most important first.
        title: stands above.

    Raises UserError for another kind of file, or a folder that does not exist.
    """
    with plot_into(path, width=8.0, height=8.0, texts=[title, *words]) as axes:
        axes.scatter(places[:, 0], places[:, 1], s=2, color=GREY, linewidths=0)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        # Where a place lies on the page is known only once the limits are.
        axes.set_xlim(axes.get_xlim())
        axes.set_ylim(axes.get_ylim())
        to_points = 72 / axes.figure.dpi
        taken: list[tuple[float, float, float, float]] = []
        at = axes.transData.transform(places) * to_points
        for (x, y), (left, bottom), word in zip(places, at, words, strict=True):
            box = (left, bottom, left + 0.62 * _LABEL_POINTS * len(word) + 3, bottom + 7)
            if any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            # Of what others wrote nothing is read as a formula.
            axes.annotate(
                word, (x, y), xytext=(2, 1), textcoords="offset points", fontsize=_LABEL_POINTS,
                color=INK, parse_math=False,
            )  # fmt: skip


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
