"""Validation loss and translation quality, whatever the number of workers."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sacrebleu
import torch

from dist_embed.data.loader import Loader, Position
from dist_embed.data.settings import Form
from dist_embed.data.token_shards import PreparedData, ShardInfo, Split, write_shard
from dist_embed.data.tokenizer import UNKNOWN, Tokenizer
from dist_embed.errors import UserError
from dist_embed.model.settings import SearchSection
from dist_embed.model.transformer import Transformer
from dist_embed.parallel.collectives import sum_numbers_over_workers as sum_over_all
from dist_embed.parallel.errors import WorkerError
from dist_embed.parallel.group import Group
from dist_embed.training import evaluate, scoring, translation
from dist_embed.training.assemble import TranslationModel
from dist_embed.training.evaluate import (
    AgainstExact,
    Quality,
    against_exact,
    evaluate_translations,
    exact_loss,
)
from dist_embed.training.scoring import Score, Scorer
from dist_embed.training.translation import TooLongError, Translator, Written
from tests.distributed.pool import WorkerPool
from tests.distributed.reference import Reference
from tests.distributed.tiny import Pairs, Sharded, Tiny, random_pairs
from tests.unit.step_content import step_content

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
BATCH_TOKENS = 60
LARGER = 20.0  # rows so many times as large make rounding show


def written(folder: Path, pairs: Pairs, tiny: Tiny) -> PreparedData:
    """The pairs as the validation split, in shards of ten."""
    split = Split()
    for first in range(0, len(pairs), 10):
        source, target = ([pair[side] for pair in pairs[first : first + 10]] for side in (0, 1))
        name = f"validation/shard-{first:05d}.parquet"
        texts = ([f"source {first + n}" for n in range(len(source))],
                 [f"the right answer {first + n} of all" for n in range(len(source))])  # fmt: skip
        write_shard(str(folder / name), source, target, texts)
        counts = (sum(map(len, side)) for side in (source, target))
        split.shards.append(ShardInfo(name, len(source), *counts))
    sizes = {"source": tiny.source_rows, "target": tiny.target_rows}
    return PreparedData({}, sizes, False, {"validation": split})


def loss_on(
    group: Group, tiny: Tiny, folder: str, data: PreparedData, at_least: float = math.inf
) -> float:
    sharded = Sharded(tiny, group, torch.bfloat16)
    for table in sharded.lookup.specs:
        sharded.lookup.weight(table).mul_(LARGER)
    sharded.lookup.after_writing()
    dropping = Transformer(
        embedding_width=tiny.width, width=16, feed_forward=24, heads=2, encoder_layers=1,
        decoder_layers=2, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    dropping.load_state_dict(sharded.transformer.state_dict())
    dropping.train()
    translation_model = TranslationModel(sharded.lookup, dropping, sharded.shard, torch.bfloat16)
    return exact_loss(
        translation_model, folder, data, "validation", BATCH_TOKENS, at_least=at_least
    )


@pytest.mark.parametrize("num_samples", [0, 5])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_validation_loss_is_exact_over_every_sentence_once(
    workers: WorkerPool, tmp_path: Path, num_workers: int, num_samples: int
) -> None:
    tiny = Tiny(num_samples=num_samples)
    pairs = random_pairs(43, 5, tiny.source_rows, tiny.target_rows)
    data = written(tmp_path, pairs, tiny)
    reference = Reference(replace(tiny, num_samples=0, label_smoothing=0.0))
    with torch.no_grad():
        for table in reference.tables.values():
            table.weight *= LARGER
        expected = float(reference.loss(pairs))
    for found in workers.run(num_workers, loss_on, tiny, str(tmp_path), data):
        assert found == pytest.approx(expected, rel=1e-5)


def loss_with_other_last_bits(group: Group, *given: Any) -> float:
    """As on workers with other processors."""
    ours = evaluate.sharded_cross_entropy

    def rounded(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, nll = ours(*arguments)
        return loss, nll * (1 + 1e-6 * group.rank)

    with mock.patch.object(evaluate, "sharded_cross_entropy", rounded):
        return loss_on(group, *given)


def test_the_loss_is_the_same_on_every_worker(workers: WorkerPool, tmp_path: Path) -> None:
    """Whether it is the best so far decides what all of them do next."""
    tiny = Tiny(num_samples=0)
    pairs = random_pairs(9, 5, tiny.source_rows, tiny.target_rows)
    data = written(tmp_path, pairs, tiny)
    found = workers.run(2, loss_with_other_last_bits, tiny, str(tmp_path), data)
    assert found[0] == found[1]


def test_the_loss_of_so_many_tokens_is_that_of_the_first_batches(
    workers: WorkerPool, tmp_path: Path
) -> None:
    tiny = Tiny()
    pairs = [  # 3 ends a sentence
        ([i + (i == 3) for i in source], [i + (i == 3) for i in target])
        for source, target in random_pairs(43, 5, tiny.source_rows, tiny.target_rows)
    ]
    data = written(tmp_path, pairs, tiny)
    loader = Loader(
        str(tmp_path), data.splits["validation"].shards, batch_tokens=BATCH_TOKENS, seed=0, rank=0,
        num_workers=1, accumulate=1,
    )  # fmt: skip
    first, second, third = islice(loader.steps(Position()), 3)
    reference = Reference(replace(tiny, label_smoothing=0.0))
    with torch.no_grad():
        for table in reference.tables.values():
            table.weight *= LARGER
        losses = [
            float(reference.loss([(list(s), list(t)) for s, t in some]))
            for some in (step_content(first), [*step_content(first), *step_content(second)])
        ]
    assert third.after.epoch == 0
    for at_least, expected in (
        (first.global_tokens, losses[0]), (first.global_tokens + 1, losses[1]),
    ):  # fmt: skip
        for found in workers.run(2, loss_on, tiny, str(tmp_path), data, at_least):
            assert found == pytest.approx(expected, rel=1e-5)


class Echo:
    """A search whose translations are the sources."""

    def translate(self, sources: list[list[int]]) -> list[list[int]]:
        return sources


class Talkative:
    """A search that finds a translation for whatever it is given."""

    def translate(self, sources: list[list[int]]) -> list[list[int]]:
        return [[*source, 4] for source in sources]


class Copied:
    """Replaces unknown words where there are two of them."""

    def texts(
        self, texts: list[str], sources: list[list[int]], answers: list[list[int]]
    ) -> dict[int, str]:
        return {i: texts[i].upper() for i, ids in enumerate(answers) if ids.count(UNKNOWN) == 2}


USUAL = SearchSection()


def echo(
    group: Group, words: list[str], search: Any = None, replace: Any = None, form: Form = "none",
    settings: SearchSection = USUAL,
) -> Translator:  # fmt: skip
    tokenizer = Tokenizer.from_words(
        [f"▁{word}" for word in words], lowercase=False, split_punctuation=False, form=form
    )
    model: Any = torch.nn.Identity()
    return Translator(
        model, group, search or Echo(), tokenizer.encode, tokenizer, replace, settings
    )


def echoed(group: Group, texts: list[str], search: Any = None, form: Form = "none") -> list[str]:
    words = [word for text in texts for word in text.split()]
    return [one.shown for one in echo(group, words, search, form=form).written(texts)]


def written_by_echo(group: Group, texts: list[str], words: list[str]) -> list[Written]:
    return echo(group, words, replace=Copied()).written(texts, "?")


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_translation_comes_back_to_its_place(workers: WorkerPool, num_workers: int) -> None:
    texts = [" ".join(f"w{n}x{i}" for i in range(n % 4)) for n in range(14)]
    for count in (14, 2, 1):
        for found in workers.run(num_workers, echoed, texts[:count]):
            assert found == texts[:count]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_blank_is_not_translated_into_words(workers: WorkerPool, num_workers: int) -> None:
    texts = ["", "a", " ", "\t \u00a0", "b c", "\u2028"]
    for found in workers.run(num_workers, echoed, texts, Talkative()):
        assert found == ["", "a a", "", "", "b c a", ""]
    for found in workers.run(num_workers, echoed, texts[2:4], Talkative()):
        assert found == ["", ""]
    # What the tokenizer finds nothing in.
    for found in workers.run(num_workers, echoed, ["a", "\ufeff \u3000"], Talkative(), "nfc"):
        assert found == ["a a", ""]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_unknown_word_is_shown_as_one_and_marked(workers: WorkerPool, num_workers: int) -> None:
    # The third is known by its letters, as any text of the corpus may be.
    texts = ["a x b", "b", "<unk>", "x x"]
    for found in workers.run(num_workers, written_by_echo, texts, ["a", "b", "<unk>"]):
        assert [(one.shown, one.marked) for one in found] == [
            ("a <unk> b", "a ? b"), ("b", "b"), ("<unk>", "<unk>"), ("X X", "X X")
        ]  # fmt: skip
        assert not any(one.cut for one in found)


def long_ones(group: Group, texts: list[str], too_long: Any) -> Any:
    settings = SearchSection(max_source_tokens=3, too_long=too_long)
    translator = echo(group, ["a", "b"], settings=settings)
    try:
        return [(one.shown, one.cut) for one in translator.written(texts, "?")]
    except TooLongError as exc:
        return exc.place, str(exc)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_too_long_is_cut_or_refused(workers: WorkerPool, num_workers: int) -> None:
    texts = ["a b a", "b b b a a", "a", "a a a a"]
    for found in workers.run(num_workers, long_ones, texts, "cut"):
        assert found == [("a b a", False), ("b b b", True), ("a", False), ("a a a", True)]
    for found in workers.run(num_workers, long_ones, texts, "refuse"):
        place, said = found
        assert place == 1
        assert said.startswith("5 source tokens are not allowed: at most 3 source tokens (")


def very_long_ones(group: Group, texts: list[str], too_long: Any) -> Any:
    """And how many characters are encoded at once."""
    settings = SearchSection(max_source_tokens=3, too_long=too_long)
    translator = echo(group, ["a", "b" * 192, "c"], replace=Copied(), settings=settings)
    real, asked = translator._encode, list[int]()

    def encode(texts: list[str]) -> list[list[int]]:
        asked.append(sum(map(len, texts)))
        return real(texts)

    translator._encode = encode
    with mock.patch.object(translation, "_TOGETHER", 400):
        try:
            return [(one.shown, one.cut) for one in translator.written(texts, "?")], asked
        except TooLongError as exc:
            return (exc.place, str(exc)), asked


@pytest.mark.parametrize("num_workers", [1, 2])
def test_of_a_very_long_text_only_the_beginning_is_looked_at(
    workers: WorkerPool, num_workers: int
) -> None:
    texts = ["c", "a " * 5000, "b" * 192, "b" * 999, "x " * 70, "x " + "y" * 999, "c"]
    for found, asked in workers.run(num_workers, very_long_ones, texts, "cut"):
        assert found == [
            ("c", False), ("a a a", True), ("b" * 192, False), ("b" * 192, True),
            ("<unk> <unk> <unk>", True), ("X " + "Y" * 190, True), ("c", False),
        ]  # fmt: skip
        assert asked == [1 + 192 + 192, 192 + 140, 192 + 1]
    for (place, said), asked in workers.run(num_workers, very_long_ones, texts, "refuse"):
        assert place == 1
        assert said.startswith("more than 192 characters are not allowed: at most 3 source tokens")
        assert asked == [1 + 192 + 192]


def long_split(group: Group, folder: str, data: PreparedData, too_long: Any) -> Any:
    settings = SearchSection(max_source_tokens=1, too_long=too_long)
    translator = echo(group, ["source", *map(str, range(25))], settings=settings)
    said: list[str] = []
    try:
        quality = evaluate_translations(
            translator, folder, data, "validation", bleu_tokenize="13a", say=said.append
        )
    except UserError as exc:
        return str(exc)
    return quality.translations, said


def test_a_held_out_sentence_that_is_cut_is_told(workers: WorkerPool, tmp_path: Path) -> None:
    tiny = Tiny()
    data = written(tmp_path, random_pairs(25, 6, tiny.source_rows, tiny.target_rows), tiny)
    for translations, said in workers.run(2, long_split, str(tmp_path), data, "cut"):
        assert translations == ["source"] * 25
        (line,) = said
        assert line.startswith("validation: lines with more than 1 source tokens")
        assert ": 25, the first is line 1;" in line
    for found in workers.run(2, long_split, str(tmp_path), data, "refuse"):
        assert found.startswith("validation, line 1: 2 source tokens are not allowed")


def scored_echo(group: Group, folder: str, data: PreparedData, fails: bool) -> Any:
    """What this worker is told of the translations' quality, and how many texts it scored itself.

    ``fails``: the score does, after a few turns.
    """
    translation = echo(group, ["source", *map(str, range(25))])
    asked: list[int] = []
    real = Scorer.score

    def score(scorer: Scorer, texts: list[str]) -> Score:
        asked.append(len(texts))
        if fails:
            time.sleep(0.3)
            raise ValueError("cannot be scored")
        return real(scorer, texts)

    with (
        mock.patch.object(Scorer, "score", score),
        mock.patch.object(scoring, "TURN_SECONDS", 0.1),
        mock.patch.object(scoring, "sum_numbers_over_workers", wraps=sum_over_all) as turns,
    ):
        try:
            quality = evaluate_translations(
                translation, folder, data, "validation", bleu_tokenize="13a"
            )
        except (ValueError, WorkerError) as exc:
            return type(exc), turns.call_count
    return quality.bleu, quality.chrf, quality.signature, asked


def test_one_worker_scores_for_all(workers: WorkerPool, tmp_path: Path) -> None:
    tiny = Tiny()
    data = written(tmp_path, random_pairs(25, 6, tiny.source_rows, tiny.target_rows), tiny)
    found = workers.run(3, scored_echo, str(tmp_path), data, False)
    assert [asked for *_, asked in found] == [[25], [], []]
    assert found[0][:3] == found[1][:3] == found[2][:3]
    assert 0 < found[0][1] < 100
    failed = workers.run(3, scored_echo, str(tmp_path), data, True)
    assert [kind for kind, _ in failed] == [ValueError, WorkerError, WorkerError]
    assert all(turns >= 3 for _, turns in failed)  # none waits for the whole score


def loss_of_lists(group: Group, folder: str, data: PreparedData) -> AgainstExact:
    texts = [f"the answer {n} of all" for n in range(25)]
    quality = Quality(0.0, 0.0, "", 25, 1.0, ["source 6"] * 25, texts)
    translation = echo(group, ["source", *map(str, range(25))])
    with mock.patch.object(evaluate, "EXACT_SENTENCES", 4):
        return against_exact(translation, quality, folder, data, "validation", bleu_tokenize="13a")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_some_sentences_are_searched_exactly_too(
    workers: WorkerPool, tmp_path: Path, num_workers: int
) -> None:
    tiny = Tiny()
    data = written(tmp_path, random_pairs(25, 6, tiny.source_rows, tiny.target_rows), tiny)
    places = [0, 6, 12, 18]
    references = [f"the right answer {n} of all" for n in places]
    lists, exact = (
        sacrebleu.corpus_bleu([text.format(n) for n in places], [references]).score
        for text in ("the answer {} of all", "source {}")
    )
    for found in workers.run(num_workers, loss_of_lists, str(tmp_path), data):
        assert found == AgainstExact(4, pytest.approx(lists), pytest.approx(exact), 1)
        assert lists > exact


def test_quality_is_sacrebleus_of_the_references_in_their_order(tmp_path: Path) -> None:
    tiny = Tiny()
    data = written(tmp_path, random_pairs(25, 6, tiny.source_rows, tiny.target_rows), tiny)
    asked: list[list[str]] = []

    class Given:
        def __init__(self, lowercase: bool) -> None:
            self.group = ALONE
            self.target = Tokenizer.from_words(
                [], lowercase=lowercase, split_punctuation=True, form="nfc"
            )

        def written(self, texts: list[str], unknown: str) -> list[Written]:
            asked.append(texts)
            answers = [f"the right  Answer {n} of all, nearly" for n in range(len(texts))]
            return [
                Written(text.replace("all", "<unk>"), text.replace("all", unknown))
                for text in answers
            ]

    references = [f"the right answer {n} of all" for n in range(25)]
    for lowercase in (False, True):
        given: Any = Given(lowercase)
        found = evaluate_translations(given, str(tmp_path), data, "validation", bleu_tokenize="13a")
        compared = [text.replace("  ", " ") for text in found.scored]
        expected = sacrebleu.corpus_bleu(
            compared, [references], lowercase=lowercase, tokenize="13a"
        )
        assert 0 < found.bleu < 100
        assert found.bleu == pytest.approx(expected.score)
        assert found.sentences == 25
        chrf = sacrebleu.corpus_chrf(compared, [references])
        if lowercase:
            lowered = [text.lower() for text in compared]
            chrf = sacrebleu.corpus_chrf(lowered, [references])
        assert 0 < found.chrf < 100
        assert found.chrf == pytest.approx(chrf.score)
        assert f"case:{'lc' if lowercase else 'mixed'}" in found.signature
        assert "tok:13a" in found.signature
        assert found.signature.endswith("|form:nfc")
        assert found.translations[3] == "the right  Answer 3 of <unk>, nearly"
        # One token, which no reference has.
        (unknown,) = found.scored[3].removeprefix("the right  Answer 3 of ").split(",")[:1]
        assert len(unknown) == 1
        assert not any(unknown in reference for reference in references)
        assert found.seconds > 0
    assert asked[0] == [f"source {n}" for n in range(25)]
