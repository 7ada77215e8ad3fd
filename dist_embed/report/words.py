"""Translations and neighbours that a run has recorded among its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dist_embed.run.metrics import NEIGHBORS, SAMPLE_KEYS, SAMPLES


@dataclass(frozen=True)
class Sentence:
    """A sentence of the validation set and what the run has made of it.

    Attributes:
        source: the sentence.
        reference: its translation by people.
        translations: by step.
    """

    source: str
    reference: str
    translations: dict[int, str]


@dataclass(frozen=True)
class Words:
    """A word and its neighbours.

    Attributes:
        word: the word.
        neighbors: by step: words with their cosine, the nearest first.
    """

    word: str
    neighbors: dict[int, list[tuple[str, float]]]


def recorded_sentences(lines: Iterable[Mapping[str, Any]]) -> list[Sentence]:
    """Of all lines, in the order in which sentences first come; see `MetricsLog.write`."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for line in lines:
        for one in _list(line.get(SAMPLES)):
            if isinstance(one, dict):
                source, reference, text = (one.get(key) for key in SAMPLE_KEYS)
                if isinstance(source, str) and isinstance(reference, str) and isinstance(text, str):
                    found.setdefault((source, reference), {})[line["step"]] = text
    return [Sentence(*texts, by_step) for texts, by_step in found.items()]


def recorded_neighbors(lines: Iterable[Mapping[str, Any]]) -> list[Words]:
    """Of all lines, in the order in which words first come; see `MetricsLog.write`."""
    found: dict[str, dict[int, list[tuple[str, float]]]] = {}
    for line in lines:
        of_words = line.get(NEIGHBORS)
        for word, near in of_words.items() if isinstance(of_words, dict) else ():
            found.setdefault(word, {})[line["step"]] = [
                (one[0], one[1])
                for one in _list(near)
                if isinstance(one, list) and [type(part) for part in one] == [str, float]
            ]
    return [Words(word, by_step) for word, by_step in found.items()]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
