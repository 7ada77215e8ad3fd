"""How corpora are read is part of what prepared data are known by; skipped rows are told."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data import preparation
from dist_embed.data.fitting import data_digest
from dist_embed.data.sources import parallel_text
from dist_embed.data.token_shards import INDEX_NAME, PreparedData, read_texts
from dist_embed.errors import ConfigError, UserError
from dist_embed.storage import uri as storage
from tests.unit.small_corpus import one_is_this_process

QUOTED = [('He said "yes" .', 'Er sagte "ja" .'), ('"Stop !"', '"Halt !"'), ("plain", "einfach")]
NEW_KEYS = ("quoting", "wrong_rows", "max_line_bytes")


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("quoted.tsv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerows([("source", "target"), *QUOTED])
    Path("train.tsv").write_bytes(b"source\ttarget\na\tb\nonly\n\xff\tc\nd\te\n\n")


def config_of(train: Any = "train.tsv", test: Any = None, **more: Any) -> Config:
    return config_from_dict({
        "run": {"uri": "run"}, "train": {"max_steps": 1},
        "data": {
            "uri": "data", "num_processes": 1, "train": {"pairs": train} | more,
            **({"test": {"pairs": test} | more} if test else {}),
        },
        "tokenizer": {"normalize": "none"},
    })  # fmt: skip


def ensured(config: Config) -> tuple[PreparedData, list[str]]:
    said: list[str] = []
    with one_is_this_process(1):
        return preparation.ensure_data(config, said.append), said


def test_quoted_references_are_what_their_writer_was_given() -> None:
    with pytest.raises(UserError, match=r"quoted\.tsv, line 2: looks quoted .* set quoting to csv"):
        ensured(config_of("quoted.tsv", "quoted.tsv"))
    data, _ = ensured(config_of("quoted.tsv", "quoted.tsv", quoting="csv"))
    source, target = read_texts(data.folder_uri, data.splits["test"])
    assert list(zip(source, target, strict=True)) == QUOTED


def test_rows_that_are_passed_over_are_counted_and_told() -> None:
    with pytest.raises(UserError, match=r"train\.tsv, line 3: 1 columns, the header has 2"):
        ensured(config_of())
    data, said = ensured(config_of(wrong_rows="skip"))
    assert data.splits["train"].dropped_wrong == 2
    assert "train: 2 pairs, 2 target tokens (2 rows skipped that cannot be read)" in said
    (told,) = [line for line in said if "line 3" in line]
    assert told == (
        "2 rows of train cannot be read and are skipped; the first: train.tsv, line 3: 1 columns, "
        "the header has 2"
    )
    assert PreparedData.read(data.folder_uri) == data
    assert ensured(config_of(wrong_rows="skip"))[0] == data
    Path("train.tsv").write_text("source\ttarget\nonly\n")
    with pytest.raises(UserError, match=r"the corpus is empty: train\.tsv \(1 rows cannot be read"):
        ensured(config_of(wrong_rows="skip").model_copy(update={
            "data": config_of(wrong_rows="skip").data.model_copy(update={"uri": "other"})
        }))  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [("quoting", "none"), ("wrong_rows", "skip"), ("max_line_bytes", 999)]
)
def test_data_that_were_read_in_another_way_are_refused(key: str, value: Any) -> None:
    Path("train.tsv").write_text("source\ttarget\na\tb\n")
    data, _ = ensured(config_of())
    with pytest.raises(
        UserError, match=rf"other settings:\n  data\.train\.{key}: .*{value}.* here"
    ):
        ensured(config_of(**{key: value}))
    assert data_digest(config_of()) != data_digest(config_of(**{key: value}))
    # As it was before there was the key.
    settings = {
        name: given for name, given in data.settings.items()
        if name.rpartition(".")[2] not in NEW_KEYS
    }  # fmt: skip
    old = replace(data, settings=settings)
    storage.write_text(storage.join(data.folder_uri, INDEX_NAME), old.to_json())
    assert ensured(config_of())[0] == old
    with pytest.raises(
        UserError, match=rf"other settings:\n  data\.train\.{key}: .*{value}.* here"
    ):
        ensured(config_of(**{key: value}))


def test_columns_are_named_or_numbered() -> None:
    config = config_of(source_column=2, target_column=1)
    assert config.data.train is not None
    assert parallel_text(config.data.train).columns == (2, 1)
    for columns, told in (
        ({"source_column": 1}, "target_column: 'target' is not allowed with source_column=1"),
        ({"source_column": 0, "target_column": 1}, "source_column: 0 is not allowed"),
        # As YAML reads a bare `no`, Norwegian, and `yes`.
        (
            {"source_column": "en", "target_column": False},
            r'target_column: False is not allowed: .* in quotes, "no"\)',
        ),
        (
            {"source_column": 2, "target_column": True},
            r'target_column: True is not allowed: .* in quotes, "yes"\)',
        ),
        ({"max_line_bytes": 2**40}, "max_line_bytes: 1099511627776 is not allowed"),
        ({"quoting": "yes"}, "quoting: 'yes' is not allowed"),
        ({"pairs": None, "source": "s", "target": "t", "quoting": "csv"}, "'csv' is of `pairs`"),
    ):
        with pytest.raises(ConfigError, match=told):
            config_of(**columns)
