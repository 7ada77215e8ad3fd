"""Beam search over words whose probabilities a test writes down, and candidate lists."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_embed.data.tokenizer import END, PAD, START
from dist_embed.embedding.plan import TableSpec
from dist_embed.model.candidates import CandidateWords
from dist_embed.model.search import Searcher
from dist_embed.model.settings import SearchSection
from dist_embed.parallel.group import Group
from tests.unit.small_run import ONE

WORD, OTHER = 4, 5
V, D = 12, 6


class Tables:
    """Stands for the tables: row i of ``values`` is the vector of id i."""

    group: Group = ONE
    table_of: ClassVar = {"output": "output"}
    specs: ClassVar = {"output": TableSpec("output", V, D)}

    def __init__(self) -> None:
        self.values = torch.randn(V, D, generator=torch.Generator().manual_seed(1))

    def lookup(self, ids: dict[str, list[Tensor]]) -> Tables:
        (self._wanted,) = next(iter(ids.values()))
        return self

    def vectors(self, role: str, number: int) -> Tensor:
        assert number == 0  # one tensor of ids was looked up
        return self.values[self._wanted]


class State:
    def select(self, index: Tensor) -> State:
        return self

    select_past = select


class Model:
    """Says at which step of a search it is."""

    def start(self, vectors: Tensor, lengths: Tensor) -> State:
        self.number = 0
        return State()

    def step(self, vectors: Tensor, state: State) -> Tensor:
        self.number += 1
        return torch.zeros(len(vectors), D)


class Script:
    """By the number of the step the log probability of each word that may follow; no other may."""

    def __init__(self, steps: list[dict[int, float]], last: dict[int, float]) -> None:
        self.steps, self.last, self.number = steps, last, 0

    def open(self, sources: list[list[int]]) -> None:
        pass

    def begin(self, sources: list[list[int]], beam: int) -> None:
        self.number = 0

    def keep(self, places: list[int]) -> None:
        pass

    def top(self, hidden: Tensor, tokens_of_worker: list[int], k: int) -> tuple[Tensor, Tensor]:
        at = self.steps[self.number] if self.number < len(self.steps) else self.last
        self.number += 1
        words = sorted(at, key=at.__getitem__, reverse=True)[:k]
        values = torch.tensor([at[word] for word in words]).expand(len(hidden), -1)
        return values, torch.tensor(words).expand(len(hidden), -1)


def found(
    steps: list[dict[int, float]], last: dict[int, float], sources: list[list[int]] | None = None,
    *, beam: int = 1, alpha: float = 1.0, ratio: float = 0.5, batch: int = 99,
) -> list[list[int]]:  # fmt: skip
    searcher: Any = Searcher(
        Model(), Tables(), Script(steps, last),  # type: ignore[arg-type]
        SearchSection(
            beam=beam, length_penalty=alpha, max_length_ratio=ratio, batch_tokens=batch
        ),
    )  # fmt: skip
    return searcher.translate(sources or [[7]])


def test_the_longest_translation_follows_from_its_sentence() -> None:
    settings = SearchSection(beam=1, length_penalty=1.0, max_length_ratio=1.5, batch_tokens=1)
    assert [settings.longest(n) for n in (0, 1, 2, 3, 100)] == [10, 11, 13, 14, 160]


def test_the_limit_of_length_is_kept_to_the_token() -> None:
    only_word, ends = {WORD: -1.0}, {WORD: -1.0, END: -0.1}
    # 0.5 × 1 + 10 tokens, the end mark included.
    assert found([only_word] * 9 + [ends], only_word) == [[WORD] * 9]
    # One later it comes too late: the best that has not ended is as long as is allowed.
    assert found([only_word] * 10 + [ends], only_word) == [[WORD] * 10]
    # Each sentence of a batch has its own limit, whatever its neighbours', and its own place.
    sources = [[7] * 4, [7], [7] * 8]
    assert found([], only_word, sources) == [[WORD] * n for n in (12, 10, 14)]
    assert found([], only_word, sources, batch=10) == [[WORD] * n for n in (12, 10, 14)]
    assert found([only_word] * 11 + [ends], only_word, sources, beam=2) == [
        [WORD] * 11, [WORD] * 10, [WORD] * 11
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("third", "alpha", "tokens"),
    # Two tokens with log probability -2 against three with -1.2 + third.
    [(-1.9, 1.0, 2), (-1.7, 1.0, 3), (-0.7, 0.0, 3), (-0.9, 0.0, 2), (-2.4, 2.0, 3),
     (-1.2, 0.5, 3), (-1.3, 0.5, 2)],
)  # fmt: skip
def test_scores_are_divided_by_the_length_with_its_end_mark(
    third: float, alpha: float, tokens: int
) -> None:
    steps = [{WORD: -0.5, OTHER: -50.0}, {END: -1.5, WORD: -0.7}, {END: third, WORD: -60.0}]
    expected = [WORD] * (tokens - 1)
    assert found(steps, {END: -9.0, WORD: -9.0}, beam=2, alpha=alpha) == [expected]


def test_only_what_is_among_the_best_of_its_step_ends() -> None:
    # With one hypothesis the second best word is not taken, though it would end best.
    steps = [{WORD: -0.5, END: -0.6}, {END: -5.0, WORD: -6.0}]
    assert found(steps, {WORD: -1.0}) == [[WORD]]
    assert found(steps, {END: -5.0, WORD: -6.0}, beam=2) == [[]]


def test_padding_and_start_mark_never_follow() -> None:
    steps = [{PAD: -0.1, START: -0.2, WORD: -3.0, END: -4.0}, {PAD: 0.0, START: 0.0, END: -1.0}]
    assert found(steps, {END: -1.0}) == [[WORD]]
    assert found([{END: -0.1}], {END: -0.1}, beam=3) == [[]]


@pytest.mark.parametrize("beam", [2, 5])
def test_fewer_words_than_hypotheses_are_enough(beam: int) -> None:
    assert found([{WORD: -1.0}] * 3, {END: -0.1}, beam=beam) == [[WORD] * 3]
    assert found([], {WORD: -1.0}, beam=beam) == [[WORD] * 10]


class Remembering:
    """A model whose next word follows from the sentence and from all words so far."""

    def start(self, vectors: Tensor, lengths: Tensor) -> Remembered:
        ids = vectors.argmax(2).tolist()
        sources = [tuple(row[:length]) for row, length in zip(ids, lengths.tolist(), strict=True)]
        return Remembered(sources, [()] * len(sources))

    def step(self, vectors: Tensor, state: Remembered) -> Tensor:
        words = vectors.argmax(1).tolist()
        state.past = [(*past, word) for past, word in zip(state.past, words, strict=True)]
        return torch.stack(
            [logits(*about) for about in zip(state.sources, state.past, strict=True)]
        )


class Remembered:
    def __init__(self, sources: list[tuple[int, ...]], past: list[tuple[int, ...]]) -> None:
        self.sources, self.past = sources, past

    def select(self, index: Tensor) -> Remembered:
        return Remembered([self.sources[i] for i in index], [self.past[i] for i in index])

    def select_past(self, index: Tensor) -> Remembered:
        return Remembered(self.sources, [self.past[i] for i in index])


class Logits:
    """What the model gives is each word's logit."""

    def open(self, sources: list[list[int]]) -> None:
        pass

    def begin(self, sources: list[list[int]], beam: int) -> None:
        pass

    def keep(self, places: list[int]) -> None:
        pass

    def top(self, hidden: Tensor, tokens_of_worker: list[int], k: int) -> tuple[Tensor, Tensor]:
        assert tokens_of_worker == [len(hidden)]
        values, ids = hidden.log_softmax(1).topk(min(k, V))
        return values, ids


def logits(source: tuple[int, ...], past: tuple[int, ...]) -> Tensor:
    """Of any words; ends are likelier as it grows."""
    seed = hash((source, past)) % 2**31  # that of numbers is the same in every process
    drawn = 2 * torch.randn(V, generator=torch.Generator().manual_seed(seed))
    drawn[END] += 0.5 * (len(past) - len(source))
    return drawn


def plain_search(source: list[int], beam: int, alpha: float, longest: int) -> list[int]:
    """One sentence, hypothesis by hypothesis."""
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for score, words in going:
            past = (START, *words)
            for word, value in enumerate(logits((*source, END), past).log_softmax(0).tolist()):
                if word not in (PAD, START):
                    candidates.append((score + value, [*words, word]))
        candidates.sort(reverse=True)
        ended += [
            (score / length**alpha, words[:-1]) for score, words in candidates[:beam]
            if words[-1] == END
        ]  # fmt: skip
        going = [c for c in candidates[: 2 * beam] if c[1][-1] != END][:beam]
        if len(ended) >= beam:
            break
    return max(ended or going)[1]


@pytest.mark.parametrize("batch", [1, 16, 999])
@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize(("alpha", "ratio"), [(1.0, 1.0), (0.3, 0.01)])
def test_a_search_is_that_of_each_sentence_by_itself(
    beam: int, batch: int, alpha: float, ratio: float
) -> None:
    tables = Tables()
    tables.values = torch.eye(V)
    tables.width = V
    # The long ones hardly end within their limits.
    sources = [[7, 5, 9], [4], [11, 11, 4, 6, 8, 10, 5], [], [6] * 30, [9, 8], [8] * 30]
    settings = SearchSection(
        beam=beam, length_penalty=alpha, max_length_ratio=ratio, batch_tokens=batch
    )
    searcher: Any = Searcher(Remembering(), tables, Logits(), settings)  # type: ignore[arg-type]
    expected = [plain_search(s, beam, alpha, settings.longest(len(s))) for s in sources]
    assert searcher.translate(sources) == expected
    assert len({tuple(words) for words in expected}) > 3
    if ratio < 1:
        assert len(expected[-3]) == len(expected[-1]) == settings.longest(30)


def candidate_words(
    tables: Tables, lexicon: dict[int, list[int]], sentences: int, by_frequency: Any = None
) -> Any:
    def translations(words: NDArray[np.int64], most: int) -> dict[int, NDArray[np.int32]]:
        return {
            word: np.array(lexicon[word][:most], np.int32)
            for word in set(words.tolist()) & lexicon.keys()
        }

    block_bytes = 4 * 2 * (6 + 3) * sentences  # of two hypotheses, six and three words
    return CandidateWords(
        tables,
        6,
        2,
        translations,
        block_bytes,
        by_frequency,  # type: ignore[arg-type]
    )


# Of ids that are ordered by frequency the first six; or the first of a list of the target's words.
@pytest.mark.parametrize(
    ("by_frequency", "frequent"),
    [(None, [*range(6)]), ([0, 1, 2, 3, 9, 5, 11, 4, 6, 7, 8], [0, 1, 2, 3, 5, 9])],
)
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_lists_of_unequal_length_are_each_its_own_softmax(
    at_once: int, by_frequency: list[int] | None, frequent: list[int]
) -> None:
    """Of six frequent words and 0, 3, 1 and 2 more; the place of padding counts for nothing."""
    tables = Tables()
    a, b = (9, 4) if by_frequency is None else (4, 9)
    # Ids up to 3 are among the frequent ones; the third of a word is one too many.
    lexicon = {20: [6, 2, a], 21: [8, 10], 22: [11], 23: [3, 0], 24: [a, 7], 25: [b]}
    sources = [[23], [20, 21, 20], [22, 30], [24, 25]]
    own: list[list[int]] = [[], [6, 8, 10], [11], sorted([7, a])]
    listed = None if by_frequency is None else np.array(by_frequency)
    words = candidate_words(tables, lexicon, at_once, listed)
    words.open(sources)
    words.begin(sources, 2)
    hidden = torch.randn(8, D, generator=torch.Generator().manual_seed(2))
    for kept in ([0, 1, 2, 3], [0, 2, 3]):
        if len(kept) == 3:  # only these go on
            words.keep(kept)
            hidden = hidden[[0, 1, 4, 5, 6, 7]]
        # All nine places are asked for; fewer come where the lists are shorter.
        values, ids = words.top(hidden, [len(hidden)], 11)
        width = 6 + max(len(own[sentence]) for sentence in kept)
        for row, state in enumerate(hidden):
            allowed = [*frequent, *own[kept[row // 2]]]
            expected = (tables.values[allowed] @ state).log_softmax(0)
            order = expected.argsort(descending=True)
            assert ids[row, : len(allowed)].tolist() == [allowed[i] for i in order]
            torch.testing.assert_close(values[row, : len(allowed)], expected[order])
            assert (values[row, len(allowed) :] == -math.inf).all()
            assert ((ids[row] >= 0) & (ids[row] < V)).all()
        assert ids.shape[1] == values.shape[1] >= width
        two, _ = words.top(hidden, [len(hidden)], 2)
        torch.testing.assert_close(two, values[:, :2])


def test_no_sentence_has_no_candidates() -> None:
    words = candidate_words(Tables(), {}, 1)
    words.open([])
    words.begin([], 2)
    values, ids = words.top(torch.empty(0, D), [0], 4)
    assert values.shape == ids.shape == (0, 4)
    assert ids.dtype == torch.int64
