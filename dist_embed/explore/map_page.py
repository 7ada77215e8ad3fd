"""A map of words as one HTML file that needs nothing else: move, zoom, search, see neighbours."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

NEIGHBORS_SHOWN = 8
_TEMPLATE = Path(__file__).with_name("map_page.html")


def map_page(places: NDArray[np.float64], words: Sequence[str], vectors: Tensor, title: str) -> str:
    """The page.

    Args:
        places: [n, 2].
        words: n of them, the most important first: they are labelled first.
        vectors: [n, D]; the nearest words of each, among these, are shown when it is pointed at.
        title: of the page.
    """
    span = max(float(np.ptp(places, axis=0).max()), 1e-12)
    unit = (places - places.min(0)) / span
    directions = functional.normalize(vectors.float())
    count = min(NEIGHBORS_SHOWN + 1, len(words))
    near, cosines = [], []
    for block in directions.split(1024):
        values, ids = (block @ directions.T).topk(count)
        near += ids.tolist()
        cosines += values.tolist()
    data = {
        "words": list(words),
        "places": np.round(unit, 5).tolist(),
        "near": [
            [[i, round(value, 3)] for i, value in zip(ids, values, strict=True) if i != own][
                :NEIGHBORS_SHOWN
            ]
            for own, (ids, values) in enumerate(zip(near, cosines, strict=True))
        ],
    }
    # No word can end the script or begin a comment in it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    before, after = _TEMPLATE.read_text(encoding="utf-8").split("@DATA@")
    return before.replace("@TITLE@", html.escape(title)) + text + after
