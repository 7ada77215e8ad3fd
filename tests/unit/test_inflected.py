from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import islice

import pytest

from dist_embed.data.languages.inflected import InflectedLanguage
from dist_embed.data.text.rows import Pair

# The grammar, spelled once more: classes of words are told by their endings.
PERSONS = {"": "", "im": "b", "ot": "d", "ens": "g", "uk": "v"}
TENSES = {"ta": "ad", "se": "it", "vo": "ud"}
PLACES = {"su": "ip", "ki": "uf", "pa": "ew"}
SUBJECT, OBJECT, OWNER, WHERE = "", "n", "s", "l"


@dataclass(frozen=True)
class Phrase:
    """What a noun phrase of either language says; stems are those of its language."""

    noun: str
    plural: bool
    definite: bool
    adjective: str
    person: str  # as in the target
    case: str = ""
    gender: str = ""


@dataclass(frozen=True)
class Sentence:
    phrases: dict[str, Phrase]  # by case; of the subject, the object and one more
    verb: str
    ending: str
    place: str  # as in the target
    owner_of: str  # the case of the noun behind which, or before which, the owner stands
    stems: list[str]  # in order


def stem(word: str) -> tuple[str, str]:
    found = re.fullmatch("((?:[^aeiou]+[aeiou]){2})(.*)", word)
    assert found is not None, word
    return found[1], found[2]


def read_source(text: str) -> Sentence:
    words = text.split()
    assert words.pop() == "."
    phrases: dict[str, Phrase] = {}
    stems, verb, tense, place, case, owner_of = [], "", "", "", SUBJECT, ""
    while words:
        word = words.pop(0)
        if word in ("un", "lo"):
            adjective, number = "", ""
            root, ending = stem(words.pop(0))
            if ending in ("l", "lis"):
                adjective, number = root, ending
                stems.append(root)
                root, ending = stem(words.pop(0))
            stems.append(root)
            plural = ending.startswith("r")
            assert number in ("", "lis" if plural else "l")
            phrases[case] = Phrase(
                root, plural, word == "lo", adjective, PERSONS[ending.removeprefix("r")]
            )
        elif word == "de":
            case, owner_of = OWNER, case
        elif word in PLACES:
            case, place = WHERE, PLACES[word]
        else:
            verb, tense = stem(word)
            stems.append(verb)
            case = OBJECT
    ending = TENSES[tense] + ("an" if phrases[SUBJECT].plural else "")
    return Sentence(phrases, verb, ending, place, owner_of, stems)


def read_target(text: str) -> Sentence:
    words = text.split()
    assert words.pop() == "."
    verb, verb_ending = stem(words.pop())
    phrases: dict[str, Phrase] = {}
    order, stems, place = [], [], ""
    while words:
        article = re.fullmatch("([mt])([oae])(k?)([nsl]?)", words.pop(0))
        assert article is not None
        definite, gender, plural, case = article[1] == "t", article[2], article[3], article[4]
        root, ending = stem(words.pop(0))
        assert ending == ("ka" if plural else "") + case
        stems.append(root)
        adjective = person = ""
        if words and (found := re.fullmatch(f"([bdgv]){gender}{plural}", words[0])):
            person = found[1]
            del words[0]
        elif words and re.search("[oae]r(ek)?$", words[0]):
            adjective, agreement = stem(words.pop(0))
            assert agreement == gender + "r" + ("ek" if plural else "")
            stems.append(adjective)
        if case == WHERE:
            place = words.pop(0)
            assert place in PLACES.values()
        order.append(case)
        phrases[case] = Phrase(root, bool(plural), definite, adjective, person, case, gender)
    owner_of = order[order.index(OWNER) + 1] if OWNER in order else ""
    assert [case for case in order if case not in (OWNER, WHERE)] == [SUBJECT, OBJECT]
    return Sentence(phrases, verb, verb_ending, place, owner_of, [*stems, verb])


LANGUAGE = InflectedLanguage(40, 12, 10, exponent=0.5, seed=1)


@cache  # when it is asked for: every process of the tests imports this file
def all_pairs() -> list[Pair]:
    return list(LANGUAGE.pairs(12_000, "train", 1))


@cache
def all_read() -> list[tuple[Sentence, Sentence]]:
    return [(read_source(source), read_target(target)) for source, target in all_pairs()]


def stem_pairs(read: Iterable[tuple[Sentence, Sentence]]) -> set[tuple[str, str, str]]:
    """The class of a stem, the stem and its translation, wherever one stands."""
    found = set()
    for source, target in read:
        found.add(("verb", source.verb, target.verb))
        assert source.phrases.keys() == target.phrases.keys()
        for case, phrase in source.phrases.items():
            answer = target.phrases[case]
            found.add(("noun", phrase.noun, answer.noun))
            assert bool(phrase.adjective) == bool(answer.adjective)
            if phrase.adjective:
                found.add(("adjective", phrase.adjective, answer.adjective))
    return found


def test_the_same_seed_gives_the_same_text() -> None:
    again = InflectedLanguage(40, 12, 10, exponent=0.5, seed=1)
    assert list(again.pairs(12_000, "train", 1)) == all_pairs()
    assert list(again.pairs(7, "train", 1)) == all_pairs()[:7]


def test_the_text_is_what_it_always_was() -> None:
    """Studies and tables in the docs name a corpus by its settings alone."""
    text = "".join(f"{source}\t{target}\n" for source, target in all_pairs())
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "2cebea8ff378de8902e60a21c0eb19579b4cde626f1b4381d894e9ba3b0f580e"


def test_seeds_and_splits_give_other_text() -> None:
    def first(language: InflectedLanguage, split: str, seed: int) -> list[Pair]:
        return list(islice(language.pairs(50, split, seed), 50))

    other = InflectedLanguage(40, 12, 10, exponent=0.5, seed=2)
    texts = [
        first(LANGUAGE, "train", 1), first(LANGUAGE, "validation", 1), first(LANGUAGE, "test", 1),
        first(LANGUAGE, "train", 2), first(other, "train", 1),
    ]  # fmt: skip
    assert len({str(text) for text in texts}) == len(texts)


def test_a_stem_has_one_translation_in_all_splits() -> None:
    held_out = [
        (read_source(source), read_target(target)) for source, target in LANGUAGE.pairs(500, "x", 1)
    ]
    found = stem_pairs([*all_read(), *held_out])
    assert Counter(kind for kind, _, _ in found) == {"noun": 40, "verb": 12, "adjective": 10}
    assert len({source for _, source, _ in found}) == 62
    assert len({target for _, _, target in found}) == 62


def test_a_source_sentence_has_one_translation() -> None:
    translations = defaultdict(set)
    for source, target in all_pairs():
        translations[source].add(target)
    assert max(map(len, translations.values())) == 1


def test_phrases_say_the_same_in_both_languages() -> None:
    # Number and gender of articles, adjectives and possessives: `read_target` insists on them.
    for source, target in all_read():
        for case, phrase in source.phrases.items():
            answer = target.phrases[case]
            assert (phrase.plural, phrase.definite) == (answer.plural, answer.definite)
            assert phrase.person == answer.person
        assert (source.place, source.owner_of) == (target.place, target.owner_of)


def test_gender_belongs_to_the_targets_nouns() -> None:
    genders = defaultdict(set)
    for _, target in all_read():
        for phrase in target.phrases.values():
            genders[phrase.noun].add(phrase.gender)
    assert max(map(len, genders.values())) == 1
    assert {gender for found in genders.values() for gender in found} == set("oae")


def test_the_verb_agrees_with_the_subject() -> None:
    assert all(source.ending == target.ending for source, target in all_read())
    assert len({target.ending for _, target in all_read()}) == 6
    other = [s for s, _ in all_read() if s.phrases[SUBJECT].plural != s.phrases[OBJECT].plural]
    assert len(other) > 0.3 * len(all_read())  # so the object's number would not do


def test_no_sentence_is_translated_word_by_word() -> None:
    translation = {source: target for _, source, target in stem_pairs(all_read())}
    assert not any(
        [translation[stem] for stem in source.stems] == target.stems
        for source, target in all_read()
    )
    # The same form of a noun has another ending for each role, which only the order tells.
    forms = defaultdict(set)
    for source, target in all_read():
        for case, phrase in source.phrases.items():
            answer = target.phrases[case]
            forms[phrase.noun, phrase.plural].add(answer.case)
    assert {len(found) for found in forms.values()} == {4}


@pytest.mark.parametrize("side", [0, 1])
def test_sentences_have_6_to_12_words(side: int) -> None:
    lengths = {len(pair[side].split()) for pair in all_pairs()}
    assert lengths == set(range(6, 13))


def test_all_forms_of_all_stems_are_used() -> None:
    source = {word for pair in all_pairs() for word in pair[0].split()}
    target = {word for pair in all_pairs() for word in pair[1].split()}
    small = ["un", "lo", "su", "ki", "pa", "de", "."]
    assert len(source) == 40 * 10 + 12 * 3 + 10 * 2 + len(small)
    assert len(target) == 40 * 8 + 12 * 6 + 10 * 6 + 2 * 3 * 8 + 4 * 6 + 3 + 1


@pytest.fixture(scope="module")
def large() -> list[Pair]:
    language = InflectedLanguage(20_000, 4000, 4000, exponent=1.0, seed=1)
    return list(language.pairs(20_000, "train", 1))


def test_words_follow_zipfs_law(large: list[Pair]) -> None:
    nouns = Counter(
        re.match("([^aeiou]+[aeiou]){3}", word)[0]  # type: ignore[index]
        for source, _ in large
        for article, adjective, noun in zip(*[source.split()[i:] for i in range(3)], strict=False)
        if article in ("un", "lo")
        for word in ([adjective] if not adjective.endswith(("l", "lis")) else [noun])
    )
    counts = [count for _, count in nouns.most_common()]
    whole = sum(1 / rank for rank in range(1, 20_001))
    for ranks in (1, 10, 100, 1000):
        expected = sum(1 / rank for rank in range(1, ranks + 1)) / whole
        assert sum(counts[:ranks]) / sum(counts) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("side", [0, 1])
def test_most_words_are_rare_and_most_text_is_not(large: list[Pair], side: int) -> None:
    counts = Counter(word for pair in large for word in pair[side].split())
    rare = [count for count in counts.values() if count <= 20]
    assert len(counts) > 20_000
    assert len(rare) > 0.9 * len(counts)
    assert min(map(rare.count, range(1, 6))) > 100
    assert sum(rare) < 0.4 * counts.total()


def test_the_spelling_does_not_tell_the_translation() -> None:
    language = InflectedLanguage(2000, 10, 10, exponent=0.0, seed=1)
    read = [(read_source(s), read_target(t)) for s, t in language.pairs(8000, "train", 1)]
    by_end: dict[str, list[str]] = defaultdict(list)
    for kind, source, target in stem_pairs(read):
        if kind == "noun":
            by_end[source[-2:]].append(target[-2:])
    ends = [found for found in by_end.values() if len(found) >= 10]
    assert len(ends) > 20
    assert min(len(set(found)) for found in ends) > 5
