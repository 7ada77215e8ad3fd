"""Which bytes a reader reads, and where it puts them; what it proves is in `tests/stores`."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_embed.checkpoint import chunk as chunk_module
from dist_embed.checkpoint import read as read_module
from dist_embed.checkpoint import write as write_module
from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.chunk import Rows
from dist_embed.checkpoint.manifest import OBJECTS, CheckpointDamaged, Manifest, parse_index
from dist_embed.checkpoint.read import CheckpointReader, describe_tensor
from dist_embed.checkpoint.state import LiveTensor
from dist_embed.checkpoint.write import Description
from dist_embed.storage.objects import ObjectStore
from tests.checkpoints import write_checkpoint

BLOCK = 2**10
MOST = 4 * BLOCK  # read at once


@dataclass
class Recorder:
    """A store that notes the ranges read of chunks: name, first byte, number of bytes."""

    store: ObjectStore
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        original = self.store.read_into

        def read_into(name: str, start: int, buffers: list[memoryview]) -> int:
            self.reads.append((name, start, sum(map(len, buffers))))
            return original(name, start, buffers)

        self.store.read_into = read_into  # type: ignore[method-assign]


def saved(tensors: dict[str, Tensor], chunk_bytes: int, uri: str = "") -> tuple[Recorder, Manifest]:
    store = open_checkpoints(uri or f"memory://read-{uuid.uuid4().hex}")
    infos = {name: LiveTensor.whole(data).info for name, data in tensors.items()}
    rows = [Rows(name, 0, data) for name, data in tensors.items()]
    manifest = write_checkpoint(
        store, Description(3, "", infos, {}, "{}"), rows, chunk_bytes=chunk_bytes
    )
    return Recorder(store), manifest


def filled(reader: CheckpointReader, ranges: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Rows of several tensors, read together."""
    wanted = []
    for name, (first, end) in ranges.items():
        info = reader.manifest.tensors[name]
        shape = [end - first, *info.shape[1:]] if info.shape else []
        wanted.append(Rows(name, first, torch.full(shape, 77.0)))
    reader.fill(wanted)
    return {rows.tensor: rows.data for rows in wanted}


def blocks_needed(
    recorder: Recorder, manifest: Manifest, ranges: dict[str, tuple[int, int]]
) -> dict[str, set[int]]:
    """By chunk, the blocks that the rows lie in; from the index alone, byte by byte."""
    needed: dict[str, set[int]] = {}
    for info in manifest.indexes:
        data = recorder.store.read(manifest.object_name(info.name))
        for chunk in parse_index(data, "").chunks:
            for piece in chunk.pieces:
                if piece.tensor not in ranges:
                    continue
                width = 4 * math.prod(piece.shape[1:])
                for row in range(piece.num_rows):
                    if not width:
                        continue
                    first, end = ranges[piece.tensor]
                    if first <= piece.first_row + row < end:
                        start = piece.offset + row * width
                        needed.setdefault(manifest.object_name(chunk.name), set()).update(
                            range(start // manifest.block_bytes,
                                  (start + width - 1) // manifest.block_bytes + 1)
                        )  # fmt: skip
    return needed


def runs(blocks: set[int]) -> list[int]:
    """Lengths of the runs of neighbours."""
    lengths: list[int] = []
    for block in sorted(blocks):
        if block - 1 in blocks:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def check_reads(recorder: Recorder, needed: dict[str, set[int]], block: int, most: int) -> None:
    """No block twice, none in vain, neighbours together as far as may be."""
    read: dict[str, list[int]] = {}
    for name, start, size in recorder.reads:
        assert start % block == 0
        # A byte more, where the chunk must end.
        first, last = start // block, -(-(start + size - 1) // block)
        assert last - first <= most // block
        read.setdefault(name, []).extend(range(first, last))
    assert {name: sorted(blocks) for name, blocks in read.items()} == {
        name: sorted(blocks) for name, blocks in needed.items()
    }
    together = most // block
    assert len(recorder.reads) == sum(
        -(-length // together) for blocks in needed.values() for length in runs(blocks)
    )


@pytest.fixture(scope="module", autouse=True)
def _small() -> object:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for module in (chunk_module, write_module):
            monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)
        monkeypatch.setattr(write_module, "CHUNKS_PER_INDEX", 3)
        monkeypatch.setattr(read_module, "READ_BYTES", MOST)
        yield


TENSORS = {
    "wide": torch.randn(90, 70),  # 25 KiB
    "value": torch.tensor(2.5),
    "narrow": torch.randn(900),
    "empty": torch.zeros(0, 3),
    "no bytes": torch.zeros(5, 0),
    "deep": torch.randn(30, 8, 5),
}
EVERYTHING = {name: (0, len(data) if data.dim() else 1) for name, data in TENSORS.items()}


@pytest.fixture(scope="module", params=[2**26, 12_000, 900], ids=["one chunk", "several", "many"])
def checkpoint(request: pytest.FixtureRequest, _small: object) -> tuple[Recorder, Manifest]:
    return saved(TENSORS, request.param)


def part(draw: st.DrawFn, end: int) -> tuple[int, int]:
    first = draw(st.integers(0, end))
    return first, draw(st.integers(first, end))


@st.composite
def parts(draw: st.DrawFn) -> dict[str, tuple[int, int]]:
    names = draw(st.lists(st.sampled_from(sorted(TENSORS)), min_size=1, unique=True))
    return {
        name: part(draw, EVERYTHING[name][1]) if TENSORS[name].dim() else (0, 1) for name in names
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts())
def test_any_rows_of_any_tensors_arrive_by_the_fewest_reads(
    checkpoint: tuple[Recorder, Manifest], ranges: dict[str, tuple[int, int]]
) -> None:
    recorder, manifest = checkpoint
    needed = blocks_needed(recorder, manifest, ranges)
    recorder.reads.clear()
    reader = CheckpointReader(recorder.store, manifest)
    for name, data in filled(reader, ranges).items():
        expected = TENSORS[name]
        first, end = ranges[name]
        assert torch.equal(data, expected[first:end] if expected.dim() else expected), name
    check_reads(recorder, needed, BLOCK, MOST)


def test_reads_are_counted_and_indexes_read_when_they_are_needed_once(
    checkpoint: tuple[Recorder, Manifest],
) -> None:
    recorder, manifest = checkpoint
    sizes = [index.size_bytes for index in manifest.indexes]
    reader = CheckpointReader(recorder.store, manifest)
    filled(reader, {"empty": (0, 0), "no bytes": (0, 5), "narrow": (7, 7)})
    assert reader.bytes_read == 0
    filled(reader, EVERYTHING)
    chunks = sum(index.chunk_bytes for index in manifest.indexes)
    # All but the blocks of headers that hold nothing else.
    whole = reader.bytes_read - sum(sizes)
    assert sum(data.nbytes for data in TENSORS.values()) <= whole <= chunks
    before = reader.bytes_read
    filled(reader, EVERYTHING)
    assert reader.bytes_read == before + whole
    last = CheckpointReader(recorder.store, manifest)
    filled(last, {"deep": (29, 30)})
    assert last.bytes_read <= sizes[-1] + 2 * BLOCK


def test_proving_reads_the_same_and_leaves_what_is_wanted(
    checkpoint: tuple[Recorder, Manifest],
) -> None:
    recorder, manifest = checkpoint
    wanted = [Rows("wide", 10, torch.full((50, 70), 7.0)), Rows("deep", 3, torch.ones(9, 8, 5))]
    by: dict[str, list[tuple[str, int, int]]] = {}
    for method in ("prove", "fill"):
        recorder.reads.clear()
        getattr(CheckpointReader(recorder.store, manifest), method)(wanted)
        by[method] = sorted(recorder.reads)
        assert (wanted[0].data == 7.0).all() == (method == "prove")
    assert by["prove"] == by["fill"]


def test_verifying_reads_everything_once(checkpoint: tuple[Recorder, Manifest]) -> None:
    recorder, manifest = checkpoint
    recorder.reads.clear()
    reader = CheckpointReader(recorder.store, manifest)
    reader.verify()
    num_chunks = sum(index.num_chunks for index in manifest.indexes)
    num_bytes = sum(index.chunk_bytes for index in manifest.indexes)
    # One byte more of each, to see that it ends there.
    assert sum(size for _, _, size in recorder.reads) == num_bytes + num_chunks
    # The indexes twice: first whether they name all rows, then for their chunks.
    assert reader.bytes_read == num_bytes + 2 * sum(i.size_bytes for i in manifest.indexes)
    assert reader._indexes == {}


def test_what_is_not_wanted_in_a_block_is_proven_too(tmp_path: Path) -> None:
    recorder, manifest = saved(TENSORS, 2**26, str(tmp_path))
    (chunk,) = (tmp_path / "checkpoints" / OBJECTS / manifest.attempt).glob("chunk-*")
    sound = chunk.read_bytes()
    ranges = {"wide": (0, 2), "deep": (29, 30)}
    (needed,) = blocks_needed(recorder, manifest, ranges).values()
    for block in range(-(-len(sound) // BLOCK)):
        for place in (block * BLOCK, min((block + 1) * BLOCK, len(sound)) - 1):
            damaged = bytearray(sound)
            damaged[place] ^= 64
            chunk.write_bytes(damaged)
            reader = CheckpointReader(recorder.store, manifest)
            if block not in needed:
                filled(reader, ranges)
                continue
            recorder.reads.clear()
            with pytest.raises(CheckpointDamaged, match=f"{chunk.name}: bytes .* not those writt"):
                filled(reader, ranges)
            # It may have been damaged on its way: once more, and no more.
            assert max(recorder.reads.count(read) for read in recorder.reads) == 2
    for longer in (sound + b"x", sound[:-1]):
        chunk.write_bytes(longer)
        with pytest.raises(CheckpointDamaged):
            filled(CheckpointReader(recorder.store, manifest), {"deep": (29, 30)})
        filled(CheckpointReader(recorder.store, manifest), {"wide": (0, 2)})


@pytest.mark.parametrize(
    ("wanted", "message"),
    [(Rows("wide", 0, torch.zeros(3, 71)), "wide is saved as"),
     (Rows("wide", 0, torch.zeros(3, 70, dtype=torch.float64)), "wide is saved as"),
     (Rows("value", 0, torch.zeros(1)), "value is saved as"),
     (Rows("narrow", 0, torch.tensor(0.0)), "narrow is saved as")],
)  # fmt: skip
def test_what_is_wanted_otherwise_is_refused(
    checkpoint: tuple[Recorder, Manifest], wanted: Rows, message: str
) -> None:
    recorder, manifest = checkpoint
    recorder.reads.clear()
    for method in ("fill", "prove"):
        with pytest.raises(ValueError, match=message):
            getattr(CheckpointReader(recorder.store, manifest), method)([wanted])
    assert recorder.reads == []


def test_rows_that_are_not_there_are_damage(checkpoint: tuple[Recorder, Manifest]) -> None:
    recorder, manifest = checkpoint
    with pytest.raises(CheckpointDamaged, match=r"rows 80 to 91 of wide, each once"):
        filled(CheckpointReader(recorder.store, manifest), {"wide": (80, 91)})


def test_one_tensor_is_read_by_name(checkpoint: tuple[Recorder, Manifest]) -> None:
    recorder, manifest = checkpoint
    reader = CheckpointReader(recorder.store, manifest)
    assert torch.equal(reader.rows("wide", 5, 20), TENSORS["wide"][5:25])
    assert torch.equal(reader.rows("value", 0, 1), TENSORS["value"])
    assert describe_tensor(manifest.tensors["wide"]) == "F32 90 × 70"
    assert describe_tensor(manifest.tensors["value"]) == "F32 single value"


def test_chunks_of_more_than_is_read_at_once_by_the_sizes_that_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 32 MiB, several tensors, of which separate ranges are wanted."""
    for module in (chunk_module, write_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(read_module, "READ_BYTES", 8 * 2**20)
    tensors = {name: torch.randn(10_000, 256) for name in ("a", "b", "c")}
    recorder, manifest = saved(tensors, 2**26)
    ranges = {"a": (9_000, 9_500), "b": (100, 9_900), "c": (3_000, 9_000)}
    needed = {  # by 1,024 rows a block
        manifest.object_name("chunk-00000-000000.safetensors"): {
            *range(8, 10), *range(9, 20), *range(22, 29),
        }
    }  # fmt: skip
    recorder.reads.clear()
    for name, data in filled(CheckpointReader(recorder.store, manifest), ranges).items():
        assert torch.equal(data, tensors[name][slice(*ranges[name])])
    check_reads(recorder, needed, 2**20, 8 * 2**20)


def test_blocks_larger_than_what_is_read_at_once_are_read_one_by_one(
    checkpoint: tuple[Recorder, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_module, "READ_BYTES", BLOCK // 2)
    recorder, manifest = checkpoint
    recorder.reads.clear()
    data = filled(CheckpointReader(recorder.store, manifest), {"wide": (0, 90)})["wide"]
    assert torch.equal(data, TENSORS["wide"])
    assert {start % BLOCK for _, start, _ in recorder.reads} == {0}
    assert max(size for _, _, size in recorder.reads) <= BLOCK + 1
