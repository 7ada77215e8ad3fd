from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_embed.checkpoint import manifest as manifest_module
from dist_embed.checkpoint.manifest import (
    FORMAT,
    CheckpointDamaged,
    CheckpointError,
    ChunkInfo,
    Index,
    Manifest,
    ManifestName,
    PieceInfo,
    manifest_bytes,
    parse_index,
    parse_manifest,
)

ATTEMPT = "step-000000012-20260102T030405Z-0123abcd"
VALUES: dict[str, Any] = {
    "format": FORMAT,
    "step": 12,
    "attempt": ATTEMPT,
    "created": "2026-01-02T03:04:05Z",
    "num_workers": 2,
    "fingerprint": "f" * 64,
    "block_bytes": 2**20,
    "tensors": {"table.s.weight": {"dtype": "F32", "shape": [5, 4]},
                "model.step": {"dtype": "I64", "shape": []}},
    "row_multipliers": {"s": 3},
    "indexes": [
        {"name": "index-00000-0000.json", "size_bytes": 10, "sha256": "0" * 64, "num_chunks": 1,
         "chunk_bytes": 300, "rows": {"table.s.weight": [0, 3], "model.step": [0, 1]}},
        {"name": "index-00001-0000.json", "size_bytes": 11, "sha256": "1" * 64, "num_chunks": 1,
         "chunk_bytes": 200, "rows": {"table.s.weight": [3, 5]}},
    ],
    "scalars": {"position": {"epoch": 1, "pool": 0}, "validation_loss": 2.5, "best": None},
}  # fmt: skip
MANIFEST = Manifest.model_validate(VALUES)
DATA = manifest_bytes(MANIFEST)
INDEX = Index(chunks=[
    ChunkInfo(name="c", size_bytes=3, sha256="0" * 64, blocks="1" * 64 + "2" * 64,
              pieces=[PieceInfo(tensor="t", dtype="F32", shape=[1], first_row=0, offset=2)])
])  # fmt: skip


def sealed(text: str) -> bytes:
    """What somebody who knows the format would write."""
    line = text.encode()
    return line + b"\n" + json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode() + b"\n"


def edited(**changes: Any) -> bytes:
    return sealed(json.dumps(VALUES | changes, separators=(",", ":")))


def test_what_is_written_is_read() -> None:
    assert parse_manifest(DATA, "here") == MANIFEST
    assert parse_manifest(edited(), "here") == MANIFEST
    assert parse_manifest(bytearray(DATA), "here") == MANIFEST


def test_it_is_two_lines_the_second_with_the_sum_of_the_first() -> None:
    first, second = DATA.decode().splitlines()
    assert json.loads(first) == VALUES
    assert json.loads(second) == {"sha256": hashlib.sha256(first.encode()).hexdigest()}


def test_sizes_and_names_of_objects() -> None:
    assert MANIFEST.size_bytes == 521
    assert MANIFEST.object_name("x") == f"objects/{ATTEMPT}/x"
    assert MANIFEST.tensors["table.s.weight"].num_rows == 5
    assert MANIFEST.tensors["model.step"].num_rows == 1
    assert INDEX.chunks[0].block_digest(1) == b"\x22" * 32


def test_every_changed_byte_is_found() -> None:
    for place in range(len(DATA)):
        changed = bytearray(DATA)
        changed[place] ^= 1 << place % 8
        with pytest.raises(CheckpointDamaged, match=r"s3://b/m: .*wrong SHA-256"):
            parse_manifest(changed, "s3://b/m")


def test_every_truncation_and_addition_is_found() -> None:
    for damaged in [DATA[:length] for length in range(len(DATA))] + [DATA + b"\n", DATA * 2]:
        with pytest.raises(CheckpointDamaged, match="wrong SHA-256"):
            parse_manifest(damaged, "here")


def test_another_format_is_named_and_is_no_damage() -> None:
    with pytest.raises(CheckpointError, match=rf"here: format {FORMAT + 1}.*reads {FORMAT}") as e:
        parse_manifest(edited(format=FORMAT + 1), "here")
    assert not isinstance(e.value, CheckpointDamaged)
    unproven = edited(format=FORMAT + 1)[:-5] + b'0"}\n'
    with pytest.raises(CheckpointDamaged):
        parse_manifest(unproven, "here")


@pytest.mark.parametrize("key", sorted(set(VALUES) - {"format"}))
def test_a_missing_part_is_named(key: str) -> None:
    values = {name: value for name, value in VALUES.items() if name != key}
    with pytest.raises(CheckpointDamaged, match=rf"here: not a checkpoint's manifest.*{key}"):
        parse_manifest(sealed(json.dumps(values)), "here")


@pytest.mark.parametrize(
    "changes",
    [{"step": -1}, {"step": 2**62}, {"step": True}, {"step": 1.0}, {"step": "12"}, {"step": None},
     {"attempt": "../" + ATTEMPT}, {"attempt": ATTEMPT + "\n"}, {"attempt": ATTEMPT + "/.."},
     {"attempt": "a"}, {"created": "x" * 41}, {"created": 5}, {"num_workers": 0},
     {"fingerprint": "f" * 65}, {"block_bytes": 0}, {"block_bytes": 2**27}, {"unknown": 1},
     {"tensors": {"": {"dtype": "F32", "shape": []}}}, {"tensors": []},
     {"tensors": {"x" * 401: {"dtype": "F32", "shape": []}}},
     {"tensors": {"t": {"dtype": "F31", "shape": []}}},
     {"tensors": {"t": {"dtype": "F32", "shape": [-1]}}},
     {"tensors": {"t": {"dtype": "F32", "shape": [1] * 9}}},
     {"row_multipliers": {"s": -3}}, {"indexes": {}}, {"scalars": []}],
    ids=str,
)  # fmt: skip
def test_values_of_another_kind_are_refused(changes: dict[str, Any]) -> None:
    parse_manifest(edited(), "here")
    with pytest.raises(CheckpointDamaged, match=r"here: not a checkpoint's manifest"):
        parse_manifest(edited(**changes), "here")


@pytest.mark.parametrize(
    "changes",
    [{"name": "../x"}, {"name": "/x"}, {"name": "a/b"}, {"name": ".."}, {"name": "x\0"},
     {"name": "x\n"}, {"name": ""}, {"name": "x" * 201}, {"size_bytes": -1},
     {"size_bytes": 2**26 + 1}, {"sha256": "A" * 64}, {"sha256": "0" * 63}, {"num_chunks": -1},
     {"chunk_bytes": 2**62}, {"rows": {"t": [1]}}, {"rows": {"t": [0, 1, 2]}},
     {"rows": {"t": [0, -1]}}, {"extra": 0}],
    ids=str,
)  # fmt: skip
def test_indexes_of_another_kind_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointDamaged, match="'indexes', 0"):
        parse_manifest(edited(indexes=[VALUES["indexes"][0] | changes]), "here")


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "5", '"x"', "\0", "\ufeff{}", "[" * 10_000 + "]" * 10_000,
     '{"x":' * 10_000 + "1" + "}" * 10_000, '{"step":' + "9" * 10_000 + "}"],
    ids=lambda text: text[:9].replace("\0", "NUL"),
)  # fmt: skip
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(CheckpointDamaged, match="s3://b/m"):
        parse_manifest(sealed(text), "s3://b/m")
    with pytest.raises(CheckpointDamaged, match="s3://b/i"):
        parse_index(text.encode(), "s3://b/i")


def test_bytes_that_are_no_text_are_refused() -> None:
    line = b'{"format":2,"created":"\xff"}'
    seal = json.dumps({"sha256": hashlib.sha256(line).hexdigest()}).encode()
    with pytest.raises(CheckpointDamaged, match="not a checkpoint's manifest"):
        parse_manifest(line + b"\n" + seal + b"\n", "here")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_scalars_are_finite(number: str) -> None:
    text = json.dumps(VALUES | {"scalars": {"validation_loss": "@"}}).replace('"@"', number)
    with pytest.raises(CheckpointDamaged):
        parse_manifest(sealed(text), "here")


def test_a_message_is_short_whatever_was_written() -> None:
    with pytest.raises(CheckpointDamaged) as e:
        parse_manifest(edited(**{"x" * 100_000: 1}), "here")
    assert len(str(e.value)) < 1000


def test_an_index_is_read_and_checked() -> None:
    assert parse_index(INDEX.model_dump_json().encode(), "here") == INDEX
    values = json.loads(INDEX.model_dump_json())
    piece = values["chunks"][0]["pieces"][0]
    for key, value in [
        ("name", "../c"), ("size_bytes", -3), ("blocks", "1" * 65), ("pieces", None), ("new", 1),
        ("pieces", [piece | {"first_row": -1}]), ("pieces", [piece | {"offset": 2**62}]),
        ("pieces", [piece | {"dtype": "F31"}]), ("pieces", [{"tensor": "t"}]),
    ]:  # fmt: skip
        changed = {"chunks": [values["chunks"][0] | {key: value}]}
        with pytest.raises(CheckpointDamaged, match=f"here: not a checkpoint's index.*{key}"):
            parse_index(json.dumps(changed).encode(), "here")


def test_a_manifest_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", len(DATA))
    assert manifest_bytes(MANIFEST) == DATA
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", len(DATA) - 1)
    with pytest.raises(CheckpointError, match=f"{len(DATA)} bytes"):
        manifest_bytes(MANIFEST)


@given(st.integers(0, 10**15 - 1), st.integers(0, 9999))
def test_names_of_manifests_are_read_back(step: int, generation: int) -> None:
    name = ManifestName(step, generation)
    folder, file_name = name.path.split("/")
    assert folder == "manifests"
    assert ManifestName.parse(file_name) == name


@pytest.mark.parametrize(
    "name",
    ["", "step-000000012", "step-12-0.manifest", "step-000000012-0.manifest.tmp",
     "step-000000012-0.manifest\n", "xstep-000000012-0.manifest", "step-000000012-.manifest",
     "step--00000012-0.manifest", "step-000000012-10000.manifest",
     "step-1000000000000000-0.manifest"],
)  # fmt: skip
def test_other_names_are_no_manifests(name: str) -> None:
    assert ManifestName.parse(name) is None


@pytest.mark.parametrize(
    "name",
    ["step-0000000012-0.manifest", "step-000000012-00.manifest", "step-00000001\u0662-0.manifest"],
)
def test_a_name_that_nobody_writes_is_no_manifest_s(name: str) -> None:
    assert ManifestName.parse(name) is None


def test_manifests_are_ordered_by_step_then_generation() -> None:
    names = [ManifestName(10**9, 0), ManifestName(2, 10), ManifestName(2, 9), ManifestName(1, 11)]
    assert sorted(names) == names[::-1]
