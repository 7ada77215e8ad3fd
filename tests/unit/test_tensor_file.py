from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.checkpoint.tensor_file import TensorFile, encode

TENSORS = {
    "table": torch.arange(24.0).view(6, 4),
    "row_state": torch.arange(6.0) / 7,
    "half": torch.randn(3, 2, 2).to(torch.bfloat16),
    "long": torch.tensor([[2**40, -1]]),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "scalar": torch.tensor(3.5),
    "none": torch.zeros(0, 4),
}


def written(folder: Path, data: bytes) -> TensorFile:
    (folder / "x.safetensors").write_bytes(data)
    return TensorFile(str(folder / "x.safetensors"), len(data))


def file_with(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    path.write_bytes(encode(TENSORS))
    return path


def test_whole_tensors_equal_the_library_s_reading(stored: Path) -> None:
    file, expected = TensorFile(str(stored), stored.stat().st_size), load_file(stored)
    assert sorted(file.names()) == sorted(TENSORS)
    for name, tensor in expected.items():
        assert torch.equal(file.tensor(name), tensor)
        assert file.tensor(name).dtype == TENSORS[name].dtype


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["table", "row_state", "half", "none"]), st.data())
def test_ranges_of_rows_equal_slices(stored: Path, name: str, data: st.DataObject) -> None:
    rows = len(TENSORS[name])
    first = data.draw(st.integers(0, rows))
    count = data.draw(st.integers(0, rows - first))
    part = TensorFile(str(stored), stored.stat().st_size).rows(name, first, count)
    assert torch.equal(part, TENSORS[name][first : first + count])


def test_what_is_read_can_be_written_to(stored: Path) -> None:
    part = TensorFile(str(stored), stored.stat().st_size).rows("table", 1, 2)
    part.zero_()
    assert torch.equal(load_file(stored)["table"], TENSORS["table"])


def test_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    transposed = TENSORS["table"].t()
    assert torch.equal(written(tmp_path, encode({"t": transposed})).tensor("t"), transposed)


@pytest.mark.parametrize(("first", "count"), [(5, 2), (-1, 1), (7, 0), (0, 7), (2, -1)])
def test_rows_out_of_range_are_refused(stored: Path, first: int, count: int) -> None:
    file = TensorFile(str(stored), stored.stat().st_size)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        file.rows("table", first, count)


def test_a_scalar_has_no_rows(stored: Path) -> None:
    with pytest.raises(CheckpointError, match="scalar"):
        TensorFile(str(stored), stored.stat().st_size).rows("scalar", 0, 1)


def test_a_missing_tensor_is_named(stored: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*no tensor 'gone'"):
        TensorFile(str(stored), stored.stat().st_size).tensor("gone")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*gone\.safetensors"):
        TensorFile(str(tmp_path / "gone.safetensors"), 10)


@pytest.mark.parametrize("cut", [1, 50, 110])
def test_a_truncated_file_is_refused_when_opened(tmp_path: Path, cut: int) -> None:
    with pytest.raises(CheckpointError, match="shorter than its header says"):
        written(tmp_path, encode({"t": torch.zeros(30)})[:-cut])


def test_a_file_shorter_than_its_manifest_says_is_refused_when_read(tmp_path: Path) -> None:
    data = encode({"t": torch.zeros(30)})
    (tmp_path / "x").write_bytes(data[:-5])
    file = TensorFile(str(tmp_path / "x"), len(data))
    with pytest.raises(CheckpointError, match="ends before byte"):
        file.tensor("t")


@pytest.mark.parametrize(
    "data",
    [b"", b"1234567", struct.pack("<Q", 2**60) + b"x" * 100, struct.pack("<Q", 90) + b"x" * 50,
     struct.pack("<Q", 2) + b"\xff\xff", struct.pack("<Q", 2) + b"{]"],
)  # fmt: skip
def test_a_damaged_header_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        written(tmp_path, data)


@pytest.mark.parametrize(
    "header",
    [[], 5, {"t": []}, {"t": {"dtype": "F32"}},
     {"t": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
     {"t": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}],
)  # fmt: skip
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        written(tmp_path, file_with(header, b"1234"))


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([2], [0, 4]), ([1], [0, 0]), ([1], [4, 0]), ([1], [-4, 0]), ([-1], [0, 4]), ([3, 1], [0, 4])],
)
def test_offsets_that_do_not_fit_the_shape_are_refused(
    tmp_path: Path, shape: list[int], offsets: list[int]
) -> None:
    header = {"t": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        written(tmp_path, file_with(header, b"1234")).tensor("t")
