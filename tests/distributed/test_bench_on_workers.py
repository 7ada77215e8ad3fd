"""The benchmarks' own tasks on two workers, and what must come out of them whatever the speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from dist_embed.bench import baseline, plain_model, pretrained
from dist_embed.bench.plain_sparse import SparseSampled
from dist_embed.bench.vocabulary_cases import FULL, SPARSE, Case, batches, case_config
from dist_embed.data.loader import StepBatches
from dist_embed.parallel.group import Group
from dist_embed.vectors.write import write_vectors
from tests.distributed.pool import WorkerPool
from tests.unit.small_run import word_tokenizer

WIDTH = 3


def filled(group: Group, way: Any, uri: str, vocabulary: str) -> tuple[Any, torch.Tensor]:
    tables: list[torch.Tensor] = []

    def keeping(cls: Any) -> Any:
        def start(weight: torch.Tensor, *rest: Any, **more: Any) -> Any:
            tables.append(weight)
            return cls(weight, *rest, **more)

        return start

    with (
        patch.object(pretrained, "TableStart", keeping(pretrained.TableStart)),
        patch.object(pretrained, "EveryoneReadsAll", keeping(pretrained.EveryoneReadsAll)),
        patch.object(pretrained, "redirect_output", lambda path: None),
        patch.object(pretrained, "keep_freed_memory", lambda: None),
        patch.object(pretrained, "peak_bytes", lambda: 1000 + 10 * group.rank),
        patch.object(pretrained, "reset_peak", lambda: 900),
        patch.dict("os.environ", {"RANK": str(group.rank)}),
    ):
        found = pretrained._measure(way, uri, vocabulary, "glove", WIDTH, lambda event: None)
    return found, tables[0].clone()


@pytest.mark.parametrize("way", pretrained.WAYS)
def test_each_worker_starts_its_rows_in_either_way(
    workers: WorkerPool, tmp_path: Path, way: Any
) -> None:
    uri, vocabulary = str(tmp_path / "vectors"), tmp_path / "tokenizer.json"
    blocks = list(pretrained._random_blocks(40, WIDTH))
    write_vectors(uri, "glove", iter(blocks), num_words=40, width=WIDTH)
    words = pretrained._words(0, 40)
    assert [*blocks[0].words] == words
    vocabulary.write_text(word_tokenizer(words).to_json(), encoding="utf-8")
    found = workers.run(2, filled, way, uri, str(vocabulary))
    for (seconds, extra), table in found:
        assert 0 < seconds < 60
        assert extra == 110  # of the fuller worker
        assert table.shape == (22, WIDTH)
    rows = torch.cat([table for _, table in found])
    written = {tuple(vector) for vector in blocks[0].vectors.round(5).tolist()}
    started = {tuple(row) for row in rows.tolist()}
    assert len(started & written) == 40  # every word of the file; the others are special tokens


def gradients(group: Group, kind: Any, works: list[StepBatches]) -> list[torch.Tensor]:
    """Of a step on this worker's batch, summed over workers as the model's wrapper does."""
    case = Case(kind, 90, 8, 64, 20)
    made: list[Any] = []
    if kind == SPARSE:
        sparse = SparseSampled(case_config(case), 90, group)
        sparse.run(1, works[group.rank], None)
        made.append(sparse._model)
    else:
        build = plain_model.PlainTranslator

        def keeping(**sizes: Any) -> Any:
            made.append(build(**sizes))
            return made[-1]

        with patch.object(plain_model, "PlainTranslator", keeping):
            step = plain_model.plain_training_step(case_config(case), 90, 90, group, bf16=False)
        step(1, works[group.rank], None)
    return [p.grad.to_dense().clone() for p in made[0].parameters()]


@pytest.mark.parametrize("kind", [SPARSE, FULL])
def test_plain_steps_train_on_the_mean_of_all_workers_tokens(
    workers: WorkerPool, kind: Any
) -> None:
    case = Case(kind, 90, 8, 64, 20)
    pair = [Group(rank, 2, 2, torch.device("cpu"), None) for rank in (0, 1)]  # type: ignore[arg-type]
    works = [batches(case, one, 1)[0] for one in pair]
    parts = [workers.run(1, gradients, kind, [work])[0] for work in works]
    together = workers.run(2, gradients, kind, works)
    for found in together:
        for whole, first, second in zip(found, *parts, strict=True):
            torch.testing.assert_close(whole, first + second, rtol=1e-4, atol=1e-6)


def compile_where_one_fails(group: Group, works: list[StepBatches]) -> tuple[str, str]:
    forward = plain_model.PlainTranslator.forward

    def failing(model: Any, batch: Any) -> torch.Tensor:
        if group.rank == 1:
            raise RuntimeError("there is no compiler\nmore of it")
        return forward(model, batch)

    with (
        patch.object(plain_model.PlainTranslator, "compile_parts", lambda model: None),
        patch.object(plain_model.PlainTranslator, "forward", failing),
    ):
        try:
            plain_model.plain_training_step(
                case_config(Case(FULL, 90, 8, 64, 20)), 90, 90, group, bf16=False,
                compiled_for=works[group.rank].batches,
            )  # fmt: skip
        except RuntimeError as exc:
            return type(exc).__name__, baseline._first_line(exc)
    return "", ""


def test_a_compiler_that_fails_on_one_worker_is_heard_of_on_all(workers: WorkerPool) -> None:
    pair = [Group(rank, 2, 2, torch.device("cpu"), None) for rank in (0, 1)]  # type: ignore[arg-type]
    works = [batches(Case(FULL, 90, 8, 64, 20), one, 1)[0] for one in pair]
    assert workers.run(2, compile_where_one_fails, works) == [
        ("WorkerError", "worker 1 failed; its log says why"),
        ("RuntimeError", "there is no compiler"),
    ]
