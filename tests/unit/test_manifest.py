from __future__ import annotations

import json

import pytest

from dist_embed.checkpoint.manifest import (
    FORMAT,
    CheckpointError,
    Manifest,
    ObjectInfo,
    TableInfo,
    TablePart,
)

MANIFEST = Manifest(
    step=12,
    num_workers=2,
    objects=[ObjectInfo("a/dense", 10, "0" * 64), ObjectInfo("a/t-0", 20, "1" * 64)],
    dense_object="a/dense",
    tables={"t": TableInfo(5, 4, ["weight", "m"], [TablePart("a/t-0", 0, 3)])},
    scalars={"position": {"epoch": 1, "pool": 0, "batch": 3}, "best": None, "loss": 2.5},
)


def test_what_is_written_is_read() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "here") == MANIFEST


def test_objects_are_found_and_counted() -> None:
    assert MANIFEST.object_named("a/t-0").sha256 == "1" * 64
    assert MANIFEST.size_bytes == 30
    with pytest.raises(CheckpointError, match=r"step 12 names no object 'b'"):
        MANIFEST.object_named("b")


def test_another_format_is_named() -> None:
    text = json.dumps(json.loads(MANIFEST.to_json()) | {"format": FORMAT + 1})
    with pytest.raises(CheckpointError, match=rf"s3://b/m: format {FORMAT + 1}.*reads {FORMAT}"):
        Manifest.from_json(text, "s3://b/m")


@pytest.mark.parametrize("key", ["format", "objects", "tables", "step", "dense_object"])
def test_a_missing_part_is_an_error_that_names_the_file(key: str) -> None:
    values = json.loads(MANIFEST.to_json())
    del values[key]
    with pytest.raises(CheckpointError, match=f"s3://b/m: not a checkpoint manifest.*{key}"):
        Manifest.from_json(json.dumps(values), "s3://b/m")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "5", '"x"', '{"format": 1, "objects": 5, "tables": {}}', "\0"]
)
def test_garbage_is_an_error_that_names_the_file(text: str) -> None:
    with pytest.raises(CheckpointError, match="s3://b/m"):
        Manifest.from_json(text, "s3://b/m")


@pytest.mark.parametrize("length", [0, 1, 50, 300])
def test_a_truncated_manifest_is_an_error(length: int) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint manifest"):
        Manifest.from_json(MANIFEST.to_json()[:length], "here")
