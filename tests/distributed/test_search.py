"""Beam search against trying everything."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from dist_embed.data.tokenizer import END, PAD, START
from dist_embed.model.candidates import CandidateWords
from dist_embed.model.next_words import ExactWords, NextWords
from dist_embed.model.search import Searcher
from dist_embed.model.settings import SearchSection
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool
from tests.distributed.reference import Reference
from tests.distributed.tiny import Sharded, Tiny

NONE: dict[int, list[int]] = {}
TINY = Tiny(share="decoder", source_rows=9, target_rows=7, block_bytes=4 * 7 * 3)
SOURCES = [[4, 5], [6], [8, 8, 7, 4], [5, 4, 6]]
LONGEST = 4


class _ShortSettings(SearchSection):
    # That of SearchSection is 10 at least.
    def longest(self, source_tokens: int) -> int:
        return LONGEST


def sharpen(parameter: torch.Tensor) -> None:
    # Fresh weights give nearly equal probabilities; larger ones make a real choice.
    parameter.mul_(2.5)


def search(
    group: Group, beam: int, alpha: float, frequent: int = 0, lexicon: dict[int, list[int]] = NONE,
    *, sentences: int = len(SOURCES), batch: int = 10,
) -> dict[int, list[int]]:  # fmt: skip
    sharded = Sharded(TINY, group)
    sharded.transformer.eval()
    mine = list(range(sentences))[group.rank :: group.num_workers]
    words: NextWords = ExactWords(sharded.lookup, sharded.shard)
    if frequent:
        # Blocks of one sentence or two.
        words = CandidateWords(
            sharded.lookup, frequent, 2, partial(translations, lexicon), 4 * TINY.target_rows * beam
        )
    short = _ShortSettings(
        beam=beam, length_penalty=alpha, max_length_ratio=1.0, batch_tokens=batch
    )
    searcher = Searcher(sharded.transformer, sharded.lookup, words, short)
    # Behind the searcher's back, as training changes them between two validations.
    with torch.no_grad():
        for parameter in sharded.transformer.parameters():
            sharpen(parameter)
        for name in sharded.lookup.specs:
            sharpen(sharded.lookup.weight(name).mul_(5))
    answers = searcher.translate([SOURCES[i] for i in mine])
    return dict(zip(mine, answers, strict=True))


def translations(
    lexicon: dict[int, list[int]], words: np.ndarray, most: int
) -> dict[int, np.ndarray]:
    """What `Lexicon.translations` gives."""
    return {w: np.array(lexicon[w][:most], np.int32) for w in set(words.tolist()) & lexicon.keys()}


def best_of_all(
    alpha: float, allowed: list[list[int]] | None = None
) -> list[tuple[float, list[int]]]:
    """Score of and the best of every sequence that ends within the limit."""
    reference = Reference(TINY)
    with torch.no_grad():
        for parameter in reference.transformer.parameters():
            sharpen(parameter)
        for table in reference.tables.values():
            sharpen(table.weight.data.mul_(5))
    reference.transformer.eval()
    best = []
    for place, source in enumerate(SOURCES):
        candidates = range(TINY.target_rows) if allowed is None else allowed[place]
        words = [i for i in candidates if i not in (PAD, START, END)]
        scored = []
        for length in range(LONGEST):
            for sequence in itertools.product(words, repeat=length):
                with torch.no_grad():
                    reference.tiny = Tiny(**{**TINY.__dict__, "label_smoothing": 0.0})
                    mean_loss = float(reference.loss([(source, list(sequence))], candidates))
                tokens = length + 1
                scored.append((-mean_loss * tokens / tokens**alpha, list(sequence)))
        best.append(max(scored))
    return best


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(workers: WorkerPool, alpha: float) -> None:
    expected = [sequence for _, sequence in best_of_all(alpha)]
    assert len({tuple(sequence) for sequence in expected}) > 1  # the sources matter
    for num_workers in (1, 3):
        found: dict[int, list[int]] = {}
        for answers in workers.run(num_workers, search, 200, alpha):
            found |= answers
        assert [found[i] for i in range(len(SOURCES))] == expected


def test_the_answer_does_not_depend_on_the_number_of_workers(workers: WorkerPool) -> None:
    for beam in (1, 2, 5):
        found = []
        for num_workers in (1, 2, 4):
            merged: dict[int, list[int]] = {}
            for answers in workers.run(num_workers, search, beam, 1.0):
                merged |= answers
            found.append([merged[i] for i in range(len(SOURCES))])
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("frequent", [0, 5])
@pytest.mark.parametrize(
    ("sentences", "batch"),
    [(len(SOURCES), 1), (2, 10), (0, 10)],
    ids=["rounds differ", "fewer sentences than workers", "no sentence"],
)
def test_a_worker_without_sentences_takes_part(
    workers: WorkerPool, sentences: int, batch: int, frequent: int
) -> None:
    how = partial(search, sentences=sentences, batch=batch)
    alone = workers.run(1, how, 2, 1.0, frequent, LEXICON)[0]
    found: dict[int, list[int]] = {}
    for answers in workers.run(3, how, 2, 1.0, frequent, LEXICON):
        found |= answers
    assert found == alone
    assert len(found) == sentences


# Target words 4 (frequent) to 6; of 6, only the second translation counts (K' = 2).
LEXICON = {4: [5], 5: [4, 5, 6], 6: [6], 7: [6, 4], 8: [5, 6]}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_candidate_lists_are_the_softmax_over_their_words(
    workers: WorkerPool, alpha: float
) -> None:
    frequent = 5
    allowed = [
        sorted({*range(frequent), *(t for word in source for t in LEXICON[word][:2])})
        for source in SOURCES
    ]
    assert len({tuple(words) for words in allowed}) > 2
    expected = [sequence for _, sequence in best_of_all(alpha, allowed)]
    for num_workers in (1, 3):
        found: dict[int, list[int]] = {}
        for answers in workers.run(num_workers, search, 200, alpha, frequent, LEXICON):
            found |= answers
        assert [found[i] for i in range(len(SOURCES))] == expected


def test_with_every_word_a_candidate_search_is_exact(workers: WorkerPool) -> None:
    for beam in (1, 3):
        exact, listed = (
            workers.run(2, search, beam, 1.0, frequent, LEXICON)
            for frequent in (0, TINY.target_rows)
        )
        assert listed == exact
