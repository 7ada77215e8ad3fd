from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from dist_embed.checkpoint import chunk as chunk_module
from dist_embed.checkpoint.chunk import (
    BLOCK_BYTES,
    DTYPES,
    ChunkWriter,
    Rows,
    byte_view,
    cut_into_chunks,
    dtype_name,
    row_bytes,
)
from dist_embed.checkpoint.manifest import TensorInfo

# An odd number of bytes first: what follows begins at no multiple of its width.
ROWS = [
    Rows("bytes", 0, torch.arange(7, dtype=torch.uint8)),
    Rows("table.t.weight", 12, torch.arange(24.0).view(6, 4)),
    Rows("half", 3, torch.randn(3, 2, 2).to(torch.bfloat16)),
    Rows("f16", 0, torch.randn(3).to(torch.float16)),
    Rows("double", 0, torch.randn(2, 3, dtype=torch.float64)),
    Rows("long", 0, torch.tensor([[2**40, -1]])),
    Rows("int", 0, torch.tensor([5, -6], dtype=torch.int32)),
    Rows("flags", 5, torch.tensor([True, False, True])),
    Rows("value", 0, torch.tensor(3.5)),
]


def written(writer: ChunkWriter) -> bytes:
    return b"".join(writer.blocks())


def test_every_type_is_among_the_rows() -> None:
    assert {rows.data.dtype for rows in ROWS} == set(DTYPES.values())


def test_the_safetensors_library_reads_a_chunk(tmp_path: Path) -> None:
    data = written(ChunkWriter("c", ROWS))
    assert sorted(load(data)) == sorted(rows.tensor for rows in ROWS)
    (tmp_path / "c").write_bytes(data)
    with safe_open(str(tmp_path / "c"), "pt") as file:
        for rows in ROWS:
            loaded = file.get_tensor(rows.tensor)
            assert loaded.dtype == rows.data.dtype
            assert torch.equal(loaded, rows.data)
            assert file.metadata()[f"first_row {rows.tensor}"] == str(rows.first_row)


def test_pieces_say_where_the_rows_lie() -> None:
    writer = ChunkWriter("chunk-1", ROWS)
    data = written(writer)
    info = writer.info()
    assert (info.name, info.size_bytes) == ("chunk-1", len(data))
    for rows, piece in zip(ROWS, info.pieces, strict=True):
        assert (piece.tensor, piece.first_row, piece.num_rows) == (
            rows.tensor, rows.first_row, rows.num_rows,
        )  # fmt: skip
        assert DTYPES[piece.dtype] == rows.data.dtype
        assert data[piece.offset : piece.offset + rows.size_bytes] == bytes(byte_view(rows.data))


@pytest.mark.parametrize("block", [64, 100, 4096])
def test_every_block_has_its_digest(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(chunk_module, "BLOCK_BYTES", block)
    writer = ChunkWriter("c", [Rows("t", 0, torch.randn(40, 9)), Rows("u", 0, torch.randn(5))])
    parts = [bytes(part) for part in writer.blocks()]
    assert max(map(len, parts)) <= block
    data, info = b"".join(parts), writer.info()
    digests = [
        hashlib.sha256(data[start : start + block]).digest() for start in range(0, len(data), block)
    ]
    assert [info.block_digest(number) for number in range(len(digests))] == digests
    assert info.blocks == b"".join(digests).hex()
    assert info.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()


def test_a_chunk_that_ends_with_a_block_has_no_empty_one() -> None:
    header = len(written(ChunkWriter("c", [Rows("t", 0, torch.zeros(10**6))]))) - 4 * 10**6
    writer = ChunkWriter("c", [Rows("t", 0, torch.zeros((BLOCK_BYTES - header) // 4))])
    assert len(written(writer)) == BLOCK_BYTES
    assert len(writer.info().blocks) == 64


def test_rows_need_not_be_contiguous() -> None:
    transposed = torch.arange(24.0).view(6, 4).t()
    assert torch.equal(load(written(ChunkWriter("c", [Rows("t", 0, transposed)])))["t"], transposed)


def test_writing_to_the_bytes_writes_the_tensor() -> None:
    tensor = torch.zeros(3)
    byte_view(tensor)[4:8] = bytes(byte_view(torch.tensor([2.5])))
    assert tensor.tolist() == [0.0, 2.5, 0.0]


def test_types_have_the_library_s_names() -> None:
    for name, dtype in DTYPES.items():
        assert dtype_name(dtype) == name
    with pytest.raises(KeyError):
        dtype_name(torch.complex64)


@pytest.mark.parametrize(("shape", "size"), [([5], 2), ([], 2), ([5, 3, 4], 24), ([5, 0], 0)])
def test_bytes_of_a_row(shape: list[int], size: int) -> None:
    assert row_bytes(TensorInfo(dtype="BF16", shape=shape)) == size


def put_together(chunks: list[list[Rows]]) -> dict[str, Tensor]:
    """Each tensor again, from its pieces in the order in which they come."""
    parts: dict[str, list[Rows]] = {}
    for piece in (piece for chunk in chunks for piece in chunk):
        before = parts.setdefault(piece.tensor, [])
        if before:
            assert piece.first_row == before[-1].first_row + before[-1].num_rows
        before.append(piece)
    return {
        name: torch.cat([piece.data for piece in pieces])
        if pieces[0].data.dim()
        else pieces[0].data
        for name, pieces in parts.items()
    }


def check_cut(rows: list[Rows], chunk_bytes: int) -> None:
    chunks = list(cut_into_chunks(rows, chunk_bytes))
    for chunk in chunks:
        names = [piece.tensor for piece in chunk]
        assert len(set(names)) == len(names)
        size = sum(piece.size_bytes for piece in chunk)
        assert 0 < size <= chunk_bytes or (len(chunk) == 1 and chunk[0].num_rows == 1)
    again = put_together(chunks)
    kept = [r for r in rows if r.size_bytes]
    assert list(again) == [r.tensor for r in kept]
    assert all(torch.equal(again[r.tensor], r.data) for r in kept)


SHAPES = st.lists(
    st.one_of(
        st.just(()), st.tuples(st.integers(0, 40)), st.tuples(st.integers(0, 40), st.integers(0, 9))
    ),
    max_size=6,
)


def rows_of(shapes: list[tuple[int, ...]]) -> list[Rows]:
    return [Rows(f"t{n}", 3 * n, torch.randn(shape)) for n, shape in enumerate(shapes)]


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(SHAPES, st.integers(36, 800))
def test_chunks_hold_all_rows_and_no_more_than_they_may(
    shapes: list[tuple[int, ...]], chunk_bytes: int
) -> None:
    check_cut(rows_of(shapes), chunk_bytes)


def test_a_row_larger_than_a_chunk_has_one_of_its_own() -> None:
    rows = rows_of([(1,), (5, 4), (3,), (2, 3)])
    check_cut(rows, chunk_bytes=8)
    assert [len(chunk) for chunk in cut_into_chunks(rows, 8)] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
