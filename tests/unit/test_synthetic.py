from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from itertools import islice

from dist_embed.data.languages.synthetic import SyntheticLanguage
from dist_embed.data.text.rows import Pair

LANGUAGE = SyntheticLanguage(nouns=30, verbs=12, adjectives=10, seed=1)
PAIRS = list(LANGUAGE.pairs(4000, "train", 1))
VERB_ENDING = {"ka": "tam?$", "": "em?$", "wi": "irom?$"}


def clauses() -> list[tuple[list[str], str, str, list[str], list[str]]]:
    """Subject, tense particle, verb and object of every source clause, and its target words."""
    found = []
    for source, target in PAIRS:
        left = source.removesuffix(" .").split(" and ")
        right = target.removesuffix(" .").split(" eto ")
        for clause, answer in zip(left, right, strict=True):
            _, subject, thing = re.split(r"\bthe ", clause)
            words = subject.split()
            verb = words.pop()
            tense = words.pop() if words[-1] in ("ka", "wi") else ""
            found.append((words, tense, verb, thing.split(), answer.split()))
    return found


def test_the_same_seed_gives_the_same_text() -> None:
    again = SyntheticLanguage(nouns=30, verbs=12, adjectives=10, seed=1)
    assert list(islice(again.pairs(4000, "train", 1), 100)) == PAIRS[:100]


def test_the_text_is_what_it_always_was() -> None:
    """Studies and tables in the docs name a corpus by its settings alone."""
    text = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "0f60274060fb372cc09fc7582c51247be00af695e58292cc12278cdd6edfd677"


def test_seeds_and_splits_give_other_text() -> None:
    def first(language: SyntheticLanguage, split: str, seed: int) -> list[Pair]:
        return list(language.pairs(50, split, seed))

    other = SyntheticLanguage(nouns=30, verbs=12, adjectives=10, seed=2)
    texts = [
        first(LANGUAGE, "train", 1), first(LANGUAGE, "validation", 1), first(LANGUAGE, "test", 1),
        first(LANGUAGE, "train", 2), first(other, "train", 1),
    ]  # fmt: skip
    assert len({str(text) for text in texts}) == len(texts)


def test_hardly_a_held_out_sentence_is_in_the_training_text() -> None:
    default = SyntheticLanguage(120, 60, 40, seed=1)
    seen = {source for source, _ in default.pairs(20_000, "train", 1)}
    held_out = [source for source, _ in default.pairs(500, "test", 1)]
    assert sum(source in seen for source in held_out) <= 5


def test_a_source_sentence_has_one_translation() -> None:
    translations = defaultdict(set)
    for source, target in PAIRS:
        translations[source].add(target)
    assert max(map(len, translations.values())) == 1


def test_the_object_decides_which_of_two_verbs_is_meant() -> None:
    stems: dict[str, Counter[str]] = defaultdict(Counter)
    by_object: dict[tuple[str, str], set[str]] = defaultdict(set)
    for _, tense, verb, thing, answer in clauses():
        stem = re.sub(VERB_ENDING[tense], "", answer[-1])
        assert stem != answer[-1]
        stems[verb][stem] += 1
        by_object[verb, thing[-1]].add(stem)
    two_senses = [verb for verb, found in stems.items() if len(found) == 2]
    assert len(two_senses) >= 2
    assert max(len(found) for found in stems.values()) == 2
    # A sense that hardly occurs would decide nothing.
    assert all(min(stems[verb].values()) >= 0.1 * stems[verb].total() for verb in two_senses)
    assert {len(found) for found in by_object.values()} == {1}


def test_the_verb_comes_last_and_agrees_with_the_subject() -> None:
    endings: dict[tuple[str, str], set[str]] = defaultdict(set)
    for subject, tense, _, _, answer in clauses():
        match = re.search(VERB_ENDING[tense], answer[-1])
        assert match is not None
        endings[tense, subject[-1]].add(match.group())
    assert {len(found) for found in endings.values()} == {1}
    assert {ending for found in endings.values() for ending in found} == {
        "ta", "tam", "e", "em", "iro", "irom",
    }  # fmt: skip


def test_an_adjective_follows_its_noun_and_agrees_with_it() -> None:
    stems: dict[str, set[str]] = defaultdict(set)
    endings: dict[str, set[str]] = defaultdict(set)
    for _, _, _, thing, answer in clauses():
        if len(thing) == 2:
            match = re.fullmatch("(.+)([oau]s)(i?)", answer[-2])
            assert match is not None
            stems[thing[0]].add(match[1])
            endings[thing[0]].add(match[2] + match[3])
    assert {len(found) for found in stems.values()} == {1}
    assert max(map(len, endings.values())) == 6


def test_one_source_article_has_many_target_articles() -> None:
    articles = {answer[0] for *_, answer in clauses()}
    assert articles == {"ro", "roi", "sa", "sai", "du", "dui"}


def test_sizes_are_kept() -> None:
    words = {word for source, _ in PAIRS for word in source.split()}
    adjectives = {thing[0] for _, _, _, thing, _ in clauses() if len(thing) == 2}
    verbs = {verb for _, _, verb, _, _ in clauses()}
    assert (len(adjectives), len(verbs)) == (10, 12)
    assert len(words) <= 2 * 30 + 12 + 10 + len(["the", "and", "ka", "wi", "."])
    assert len(list(LANGUAGE.pairs(7, "train", 1))) == 7
