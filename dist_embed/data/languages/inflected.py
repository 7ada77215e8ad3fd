"""A generated parallel corpus with as many words as one likes, most of them rare.

Two invented languages with many stems, drawn by Zipf's law, and several forms of each. A stem has
one translation, which nothing but itself tells; its ending and its place follow from the sentence.

Source: article, adjective, noun; subject, verb, object; then where it happens, or behind its noun
to whom it belongs. Nouns end by number and by whose they are, adjectives by number, verbs by tense.
Nothing but the order shows who does what. Target: the place or the owner comes first, the verb
last; what describes a noun stands behind it. Nouns end by number and case; articles, adjectives and
possessives agree with them, verbs with tense and the subject's number. Gender is known to the
target's lexicon alone. Sentences have 6 to 12 words, and a full stop is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dist_embed.data.languages.stems import ONSETS, OTHER_ONSETS, VOWELS, spelled, zipf_bounds
from dist_embed.data.text.rows import Pair

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Sentences made at once.
_BLOCK = 8192

# Shares of what is drawn. The last two describe the third phrase of a sentence.
_PLURAL = (0.7, 0.3)
_DEFINITE = (0.4, 0.6)
_DESCRIBED = (0.25, 0.35, 0.4)
_BARE, _ADJECTIVE, _POSSESSED = range(3)
_TENSE = (0.4, 0.4, 0.2)
_THIRD = (0.35, 0.35, 0.15, 0.15)
_NONE, _PLACE, _SUBJECTS_OWNER, _OBJECTS_OWNER = range(4)
# Cases of the target.
_SUBJECT, _OBJECT, _OWNER, _WHERE = range(4)
_PERSONS = 4

# Endings and small words; the last index varies fastest. A class of words is told by its endings.
_SOURCE_ARTICLES = ["un", "lo"]
_SOURCE_NOUNS = [n + person for n in ("", "r") for person in ("", "im", "ot", "ens", "uk")]
_SOURCE_ADJECTIVES = ["l", "lis"]
_SOURCE_VERBS = ["ta", "se", "vo"]
_PREPOSITIONS = ["su", "ki", "pa"]
_OF = "de"
_ENDS = [n + case for n in ("", "k") for case in ("", "n", "s", "l")]
_TARGET_ARTICLES = [a + gender + end for a in "mt" for gender in "oae" for end in _ENDS]
_TARGET_NOUNS = [n + case for n in ("", "ka") for case in ("", "n", "s", "l")]
_TARGET_ADJECTIVES = [gender + "r" + n for gender in "oae" for n in ("", "ek")]
_POSSESSIVES = [person + gender + n for person in "bdgv" for gender in "oae" for n in ("", "k")]
_TARGET_VERBS = [tense + n for tense in ("ad", "it", "ud") for n in ("", "an")]
_POSTPOSITIONS = ["ip", "uf", "ew"]


@dataclass(frozen=True)
class _Phrases:
    """One noun phrase for each sentence of a block.

    ``adjective`` counts where ``described`` says so, ``person`` (1 to 4) where it is not 0.
    """

    noun: Numbers
    plural: Numbers
    definite: Numbers
    described: Numbers
    adjective: Numbers
    person: Numbers


class InflectedLanguage:
    """A lexicon and the grammar above, decided by ``seed``.

    Noun number r of ``nouns`` is used with a probability ∝ 1 / r^``exponent``; so are verbs and
    adjectives. Memory: some 50 bytes a stem (100 while the lexicon is made), and some sentences.
    """

    def __init__(
        self, nouns: int, verbs: int, adjectives: int, *, exponent: float, seed: int
    ) -> None:
        rng = _generator(f"lexicon/{seed}")
        count = nouns + verbs + adjectives
        sources = spelled(_shuffled(count, rng), ONSETS, VOWELS)
        targets = spelled(_shuffled(count, rng), OTHER_ONSETS, VOWELS)
        self._gender = (rng.random(nouns) * 3).astype(np.int64)
        sizes = (nouns, verbs, adjectives)
        self._nouns, self._verbs, self._adjectives = (zipf_bounds(n, exponent) for n in sizes)
        self._source_noun, self._source_verb, self._source_adjective = _classes(
            sources, sizes, (_SOURCE_NOUNS, _SOURCE_VERBS, _SOURCE_ADJECTIVES)
        )
        self._target_noun, self._target_verb, self._target_adjective = _classes(
            targets, sizes, (_TARGET_NOUNS, _TARGET_VERBS, _TARGET_ADJECTIVES)
        )

    def pairs(self, count: int, name: str, seed: int) -> Iterator[Pair]:
        """``count`` sentence pairs; equal for equal arguments. ``name`` tells corpora apart."""
        rng = _generator(f"sentences/{name}/{seed}")
        for start in range(0, count, _BLOCK):
            yield from islice(self._block(rng), count - start)

    def _block(self, rng: np.random.Generator) -> Iterator[Pair]:
        subject, thing, third = (self._phrases(rng) for _ in range(3))
        role = _drawn(_shares(_THIRD), rng)
        verb, tense = _drawn(self._verbs, rng), _drawn(_shares(_TENSE), rng)
        preposition = _drawn(_shares((1 / 3, 1 / 3, 1 / 3)), rng)
        placed, with_subject = role == _PLACE, role == _SUBJECTS_OWNER
        with_object = role == _OBJECTS_OWNER
        sources = [
            *self._source_phrase(subject),
            _taken([_OF], 0 * role, with_subject),
            *self._source_phrase(third, with_subject),
            self._source_verb.forms(verb, tense),
            *self._source_phrase(thing),
            _taken([*_PREPOSITIONS, _OF], np.where(placed, preposition, 3), placed | with_object),
            *self._source_phrase(third, placed | with_object),
        ]
        targets = [
            *self._target_phrase(third, np.where(placed, _WHERE, _OWNER), placed | with_subject),
            _taken(_POSTPOSITIONS, preposition, placed),
            *self._target_phrase(subject, np.full_like(role, _SUBJECT)),
            *self._target_phrase(third, np.full_like(role, _OWNER), with_object),
            *self._target_phrase(thing, np.full_like(role, _OBJECT)),
            self._target_verb.forms(verb, 2 * tense + subject.plural),
        ]
        return zip(_sentences(sources), _sentences(targets), strict=True)

    def _phrases(self, rng: np.random.Generator) -> _Phrases:
        described = _drawn(_shares(_DESCRIBED), rng)
        person = 1 + _drawn(_shares((1 / _PERSONS,) * _PERSONS), rng)
        return _Phrases(
            _drawn(self._nouns, rng),
            _drawn(_shares(_PLURAL), rng),
            _drawn(_shares(_DEFINITE), rng),
            described,
            _drawn(self._adjectives, rng),
            np.where(described == _POSSESSED, person, 0),
        )

    def _source_phrase(self, phrase: _Phrases, there: Flags | None = None) -> list[Any]:
        return [
            _taken(_SOURCE_ARTICLES, phrase.definite, there),
            self._source_adjective.forms(
                phrase.adjective, phrase.plural, _both(phrase.described == _ADJECTIVE, there)
            ),
            self._source_noun.forms(
                phrase.noun, (1 + _PERSONS) * phrase.plural + phrase.person, there
            ),
        ]

    def _target_phrase(
        self, phrase: _Phrases, case: Numbers, there: Flags | None = None
    ) -> list[Any]:
        plural = phrase.plural
        agreement = 2 * self._gender[phrase.noun] + plural
        return [
            _taken(_TARGET_ARTICLES, (6 * phrase.definite + agreement) * 4 + case, there),
            self._target_noun.forms(phrase.noun, 4 * plural + case, there),
            self._target_adjective.forms(
                phrase.adjective, agreement, _both(phrase.described == _ADJECTIVE, there)
            ),
            _taken(
                _POSSESSIVES, 6 * (phrase.person - 1) + agreement, _both(phrase.person > 0, there)
            ),
        ]


@dataclass(frozen=True)
class _Words:
    """The words of a class: Arrow arrays of its stems and of its endings."""

    stems: Any
    endings: Any

    def forms(self, stem: Numbers, ending: Numbers, there: Flags | None = None) -> Any:
        """A column of words; null where ``there`` is not set."""
        columns = self.stems.take(_indices(stem, there)), self.endings.take(_indices(ending, there))
        return pc.binary_join_element_wise(*columns, "")


def _classes(
    stems: Any, sizes: Sequence[int], endings: Sequence[Sequence[str]]
) -> Iterator[_Words]:
    """Cut the stems into classes."""
    first = 0
    for size, ends in zip(sizes, endings, strict=True):
        yield _Words(stems.slice(first, size), pa.array(ends))
        first += size


def _taken(words: Sequence[str], index: Numbers, there: Flags | None = None) -> Any:
    """A column of ``words``; null where ``there`` is not set."""
    return pa.array(words).take(_indices(index, there))


def _indices(index: Numbers, there: Flags | None) -> Any:
    return pa.array(index, mask=None if there is None else ~there)


def _both(flags: Flags, there: Flags | None) -> Flags:
    return flags if there is None else flags & there


def _sentences(columns: list[Any]) -> list[str]:
    joined = pc.binary_join_element_wise(*columns, ".", " ", null_handling="skip")
    sentences: list[str] = joined.to_pylist()
    return sentences


def _generator(name: str) -> np.random.Generator:
    # Of its methods only `random` is used here: what the others draw may differ between versions.
    return np.random.Generator(np.random.PCG64(list(name.encode())))


def _shuffled(count: int, rng: np.random.Generator) -> Numbers:
    return np.argsort(rng.random(count), kind="stable").astype(np.int64)


def _shares(shares: Sequence[float]) -> NDArray[np.float64]:
    return np.cumsum(shares)[:-1]


def _drawn(bounds: NDArray[np.float64], rng: np.random.Generator) -> Numbers:
    """[_BLOCK] numbers of the parts into which ``bounds`` cut [0, 1)."""
    return np.searchsorted(bounds, rng.random(_BLOCK), side="right")
