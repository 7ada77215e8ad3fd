"""A generated parallel corpus that cannot be translated word for word.

Two invented languages share meanings but not grammar. Source: subject, verb, object; adjectives
before nouns; number on the noun alone; tense as a particle. Target: the verb comes last; adjectives
follow their noun and agree with it in gender and number; articles show gender, number and case;
the verb's ending shows tense and the subject's number; one source verb has two target verbs, and
whether the object is animate decides which. Gender exists only in the target lexicon.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from dist_embed.data.languages.stems import ONSETS, VOWELS
from dist_embed.data.text.rows import Pair

T = TypeVar("T")

_CODAS = ["", "", "", "l", "m", "n", "r", "s", "t"]

# Target articles by (gender, plural, object case).
_ARTICLES = {
    ("m", False, False): "ro", ("m", True, False): "roi",
    ("m", False, True): "ron", ("m", True, True): "roin",
    ("f", False, False): "sa", ("f", True, False): "sai",
    ("f", False, True): "san", ("f", True, True): "sain",
    ("n", False, False): "du", ("n", True, False): "dui",
    ("n", False, True): "dun", ("n", True, True): "duin",
}  # fmt: skip
_ADJECTIVE_ENDINGS = {
    ("m", False): "os", ("m", True): "osi", ("f", False): "as",
    ("f", True): "asi", ("n", False): "us", ("n", True): "usi",
}  # fmt: skip
_TENSES = {"past": "ka", "present": "", "future": "wi"}
_VERB_ENDINGS = {
    ("past", False): "ta", ("past", True): "tam", ("present", False): "e",
    ("present", True): "em", ("future", False): "iro", ("future", True): "irom",
}  # fmt: skip


@dataclass(frozen=True)
class _Noun:
    source: str
    target: str
    gender: str
    animate: bool


@dataclass(frozen=True)
class _Verb:
    source: str
    target_animate: str
    target_inanimate: str


@dataclass(frozen=True)
class _Phrase:
    noun: _Noun
    adjective: tuple[str, str] | None
    plural: bool


class SyntheticLanguage:
    """A lexicon and the grammar above, decided by ``seed``."""

    def __init__(self, nouns: int, verbs: int, adjectives: int, seed: int) -> None:
        rng = random.Random(f"lexicon/{seed}")
        needed = 2 * nouns + 3 * verbs + 2 * adjectives
        taken: set[str] = set(_ARTICLES.values()) | {"ka", "wi", "the", "and", "eto"}
        stems: list[str] = []
        while len(stems) < needed:
            stem = "".join(
                rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3)))
            ) + rng.choice(_CODAS)
            if stem not in taken:
                taken.add(stem)
                stems.append(stem)
        self._nouns = [
            _Noun(stems.pop(), stems.pop(), rng.choice("mfn"), rng.random() < 0.5)
            for _ in range(nouns)
        ]
        self._verbs: list[_Verb] = []
        for _ in range(verbs):
            source, first, second = stems.pop(), stems.pop(), stems.pop()
            # A third of the verbs has two senses.
            self._verbs.append(_Verb(source, first, second if rng.random() < 1 / 3 else first))
        self._adjectives = [(stems.pop(), stems.pop()) for _ in range(adjectives)]

    def pairs(self, count: int, name: str, seed: int) -> Iterator[Pair]:
        """``count`` sentence pairs; equal for equal arguments. ``name`` tells corpora apart."""
        rng = random.Random(f"sentences/{name}/{seed}")
        for _ in range(count):
            source, target = self._clause(rng)
            if rng.random() < 0.3:
                more_source, more_target = self._clause(rng)
                source, target = f"{source} and {more_source}", f"{target} eto {more_target}"
            yield f"{source} .", f"{target} ."

    def _clause(self, rng: random.Random) -> Pair:
        tense = rng.choice(list(_TENSES))
        subject, thing = self._phrase(rng), self._phrase(rng)
        verb = _zipf_choice(rng, self._verbs)
        particle = [_TENSES[tense]] if _TENSES[tense] else []
        source = [*_source_phrase(subject), *particle, verb.source, *_source_phrase(thing)]
        stem = verb.target_animate if thing.noun.animate else verb.target_inanimate
        target = [
            *_target_phrase(subject, is_object=False),
            *_target_phrase(thing, is_object=True),
            stem + _VERB_ENDINGS[tense, subject.plural],
        ]
        return " ".join(source), " ".join(target)

    def _phrase(self, rng: random.Random) -> _Phrase:
        adjective = _zipf_choice(rng, self._adjectives) if rng.random() < 0.6 else None
        return _Phrase(_zipf_choice(rng, self._nouns), adjective, rng.random() < 0.4)


def _zipf_choice(rng: random.Random, items: list[T]) -> T:
    """An item with probability falling roughly as 1 / rank, as words of a language do."""
    return items[min(int(len(items) ** rng.random() - 1 + rng.random()), len(items) - 1)]


def _source_phrase(phrase: _Phrase) -> list[str]:
    adjective = [phrase.adjective[0]] if phrase.adjective else []
    return ["the", *adjective, phrase.noun.source + ("s" if phrase.plural else "")]


def _target_phrase(phrase: _Phrase, *, is_object: bool) -> list[str]:
    noun, plural = phrase.noun, phrase.plural
    words = [_ARTICLES[noun.gender, plural, is_object], noun.target + ("i" if plural else "")]
    if phrase.adjective:
        words.append(phrase.adjective[1] + _ADJECTIVE_ENDINGS[noun.gender, plural])
    return words
