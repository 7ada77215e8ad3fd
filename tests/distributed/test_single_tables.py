"""Tables that stay frozen or have rates of their own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from dist_embed.config.load import config_from_dict
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepare import read_counts
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import SPACE
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.embedding.pretrained import TableStart
from dist_embed.embedding.row_order import RowOrder
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.parallel.group import Group
from dist_embed.training import single_tables
from dist_embed.training.assemble import build_translation_model
from dist_embed.training.single_tables import start_tables, write_coverages
from dist_embed.vectors.coverage import Coverage
from dist_embed.vectors.settings import PretrainedSection
from tests.distributed.pool import WorkerPool
from tests.distributed.tiny import Sharded, Tiny, random_pairs
from tests.unit.small_corpus import one_is_this_process

PAIRS = random_pairs(12, 3, 23, 31)
Tables = dict[str, tuple[torch.Tensor, ...]]


def tables_after(group: Group, tiny: Tiny, steps: int) -> list[Tables]:
    """Rows and optimizer state of this worker's shards, at the start and after each step."""
    model = Sharded(tiny, group)

    def now() -> Tables:
        return {
            name: (weight.clone(), *(value.clone() for value in state.values()))
            for name, (_, weight, state) in model.tables().items()
        }

    found = [now()]
    for step in range(1, steps + 1):
        result = model.step(step, PAIRS)
        assert math.isfinite(result.loss)
        assert not result.skipped
        found.append(now())
    return found


def same(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("num_workers", "num_samples", "clip_norm"),
    [(1, 0, 0.01), (1, 9, 0.0), (2, 0, 0.0), (2, 9, 0.01)],
)
@pytest.mark.parametrize(
    "frozen", [{"source": math.inf}, {"target": 1.0}, {"output": 2.0, "source": 1.0},
               {"source": 3.0, "target": 3.0, "output": 3.0}],
)  # fmt: skip
def test_a_frozen_table_stays_as_it_is_for_so_long_and_others_train(
    workers: WorkerPool, num_workers: int, num_samples: int, clip_norm: float,
    frozen: dict[str, float],
) -> None:  # fmt: skip
    tiny = Tiny(share="none", num_samples=num_samples, clip_norm=clip_norm,
                frozen_until=tuple(frozen.items()))  # fmt: skip
    for history in workers.run(num_workers, tables_after, tiny, 3):
        for step in range(1, 4):
            for name in history[0]:
                stays = step <= frozen.get(name, 0)
                assert same(history[step - 1][name], history[step][name]) == stays, (name, step)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_so_it_does_with_the_other_optimizers(workers: WorkerPool, optimizer: str) -> None:
    tiny = Tiny(share="none", optimizer=optimizer, frozen_until=(("source", 2.0),))
    for history in workers.run(2, tables_after, tiny, 3):
        assert len(history[0]["source"]) == (1 if optimizer == "sgd" else 2)
        for step in range(1, 4):
            for name in history[0]:
                stays = name == "source" and step <= 2
                assert same(history[step - 1][name], history[step][name]) == stays, (name, step)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("num_samples", [0, 9])
def test_a_tables_own_rate_is_its_alone(
    workers: WorkerPool, num_workers: int, num_samples: int
) -> None:
    def start(rates: dict[str, float]) -> list[Tables]:
        tiny = Tiny(share="none", num_samples=num_samples, own_rates=tuple(rates.items()))
        return [history[1] for history in workers.run(num_workers, tables_after, tiny, 1)]

    usual = start({})
    every = start({"source": 0.02, "target": 0.02, "output": 0.02})
    one = start({"source": 0.02})
    for rank in range(num_workers):
        # After one step from the same start a table's rows depend on its own rate only.
        assert same(one[rank]["source"], every[rank]["source"])
        assert not same(one[rank]["source"], usual[rank]["source"])
        for name in ("target", "output"):
            assert same(one[rank][name], usual[rank][name])


WIDTH, SEED = 8, 2**35 + 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data with two vocabularies, and vectors of both sides' words."""
    folder = tmp_path_factory.mktemp("vectors")
    synthetic = {"sentences": 60, "held_out": 3, "nouns": 9, "verbs": 4, "adjectives": 3}
    values = {
        "run": {"uri": str(folder / "run")}, "train": {"max_steps": 9},
        "data": {"synthetic": synthetic, "uri": str(folder / "data"), "num_processes": 1},
        "tokenizer": {"shared": False, "vocab_size": 40},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    with one_is_this_process(1):
        ensure_data(config_from_dict(values), lambda line: None)
    # As data were prepared before they had a folder of their own.
    shutil.move(prepared_folder(str(folder / "data")), folder / "moved")
    shutil.rmtree(folder / "data")
    shutil.move(folder / "moved", folder / "data")
    (folder / "source.txt").write_text(
        "".join(f"en:{w} {' '.join(map(str, v))}\n" for w, v in source_vectors(folder).items())
    )
    words = words_of(folder, "target")[::2]
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words))
    torch.manual_seed(0)
    matrices = {name: torch.randn(len(words), 6) for name in ("a", "b")}
    save_file(matrices, folder / "target.safetensors")
    return folder


def words_of(folder: Path, side: str) -> list[str]:
    tokens = load_tokenizers(str(folder / "data"))[side].tokens()[4:]
    return [
        token.removeprefix(SPACE) for token in tokens if token.startswith(SPACE) and token != SPACE
    ]


def source_vectors(folder: Path) -> dict[str, list[float]]:
    """Every third word has none; the others are written in small letters."""
    known = [word for n, word in enumerate(words_of(folder, "source")) if n % 3]
    return {word.lower(): [float(n), 0.5, *[-float(n)] * 6] for n, word in enumerate(known)}


def started(
    group: Group, values: dict[str, Any], share: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Coverage], list[str], list[Any]]:
    """Rows of this worker before and after, what was found, was said and was asked for."""
    asked: list[Any] = []
    said: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            asked.append((name, args, options))
            return function(*args, **options)

        return call

    config = config_from_dict(values | {"model": {"share_embeddings": share}})
    data = PreparedData.read(config.data.uri)
    lookup = build_translation_model(config, data.vocabulary_size, group).lookup
    before = {name: lookup.weight(name).clone() for name in lookup.specs}
    written = mock.Mock(wraps=lookup.after_writing)
    with (
        mock.patch.object(single_tables, "TableStart", noted("start", TableStart)),
        mock.patch.object(single_tables, "open_file_of", noted("open", single_tables.open_file_of)),
        mock.patch.object(lookup, "after_writing", written),
    ):
        tokenizers = load_tokenizers(config.data.uri)
        found = start_tables(config, data, lookup, lambda: tokenizers, said.append)
    assert written.call_count == 1
    after = {name: lookup.weight(name).clone() for name in lookup.specs}
    plain = [
        (args, options) if name == "open" else (args[5], args[6:], options)
        for name, args, options in asked
    ]
    return before, after, found, said, plain


@pytest.mark.parametrize("share", ["none", "decoder"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_tables_start_from_their_own_files(
    workers: WorkerPool, files: Path, share: Any, num_workers: int
) -> None:
    source = {"uri": str(files / "source.txt"), "prefix": "en:", "match": ["lowercase"],
              "missing": "mean"}  # fmt: skip
    output = {
        "uri": str(files / "target.safetensors"), "format": "safetensors", "tensor": "b",
        "words": str(files / "words.txt"), "project": "random", "rescale": True,
        "min_coverage": 0.01,
    }  # fmt: skip
    values = json.loads((files / "config.json").read_text())
    values["run"]["seed"] = SEED
    values["embedding"] = {
        "width": WIDTH,
        "tables": {"source": {"pretrained": source}, "output": {"pretrained": output}},
    }
    results = workers.run(num_workers, started, values, share)
    before, after = (
        {name: torch.cat([result[place][name] for result in results]) for name in results[0][0]}
        for place in (0, 1)
    )
    tables = TABLE_OF_ROLE[share]

    order = RowOrder(len(after["source"]))
    by_id = after["source"][order.rows_of(torch.arange(len(after["source"])))]
    vectors, tokens = source_vectors(files), load_tokenizers(str(files / "data"))["source"].tokens()
    mean = torch.tensor(list(vectors.values())).mean(0)
    for i, token in enumerate(tokens[4:], start=4):
        wanted = vectors.get(token.removeprefix(SPACE).lower())
        torch.testing.assert_close(by_id[i], mean if wanted is None else torch.tensor(wanted))

    for name in before:
        changed = name in (tables["source"], tables["output"])
        assert torch.equal(before[name], after[name]) != changed, name
    words = words_of(files, "target")[::2]
    place = {
        token: i for i, token in enumerate(load_tokenizers(str(files / "data"))["target"].tokens())
    }
    ids = torch.tensor([place[SPACE + word] for word in words])
    output_rows = after[tables["output"]]
    found_rows = output_rows[RowOrder(len(output_rows)).rows_of(ids)]
    # As large as fresh rows, whose standard deviation is 1 / √D.
    assert float(found_rows.square().mean()) == pytest.approx(1 / WIDTH, rel=1e-5)

    for rank, (*_, coverages, said, asked) in enumerate(results):
        assert list(coverages) == [tables["source"], tables["output"]]
        assert coverages["source"].found_words["after lowercase"] + sum(
            word in vectors for word in words_of(files, "source")
        ) == len(vectors)
        assert [line.split(":")[0] for line in said if " start from " in line] == [
            f"table {name}" for name in coverages
        ]
        assert asked == [
            ((PretrainedSection(**source),), {}),
            (PretrainedSection(**source), (),
             {"seed": SEED, "fresh_scale": WIDTH**-0.5}),
            ((PretrainedSection(**output),), {}),
            (PretrainedSection(**output), (),
             {"seed": SEED, "fresh_scale": WIDTH**-0.5}),
        ]  # fmt: skip
        if rank == 0:  # who alone knows how often words occur
            for role, side in (("source", "source"), ("output", "target")):
                tokens = load_tokenizers(str(files / "data"))[side].tokens()[4:]
                counts = read_counts(PreparedData.read(str(files / "data")), side)[4:]
                spaces = counts[tokens.index(SPACE)]  # left before full stops, and no words
                assert coverages[tables[role]].tokens == counts.sum() - spaces

    write_coverages(str(files / "run"), results[0][2])
    for name, coverage in results[0][2].items():
        assert (files / "run" / f"pretrained.{name}.json").read_text() == coverage.to_json()


def test_without_files_no_table_is_touched(workers: WorkerPool, files: Path) -> None:
    values = json.loads((files / "config.json").read_text())
    values["embedding"] = {"width": WIDTH, "tables": {"source": {"freeze": True}}}
    ((before, after, coverages, said, asked),) = workers.run(1, started, values, "none")
    assert (coverages, said, asked) == ({}, [], [])
    assert all(torch.equal(before[name], after[name]) for name in before)
