"""Parquet is read in one place, and nothing of Arrow is alive in a thread when a process ends."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_embed.data.prepare import read_counts
from dist_embed.data.token_shards import PreparedData
from dist_embed.errors import UserError
from dist_embed.storage.parquet import ParquetError, ParquetReader, read_parquet, write_parquet
from tests.unit.small_corpus import Prepared

ROOT = Path(__file__).parents[2]
ONLY = ROOT / "dist_embed/storage/parquet.py"
# Of Arrow, and started by these whatever they are told.
STARTERS = {"read_table", "read_pandas", "ParquetDataset", "read_csv", "open_csv"}
ELSEWHERE = tuple(f"pyarrow.{name}" for name in ("parquet", "dataset", "acero", "feather", "orc"))
TABLE = pa.table(
    {"ids": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())), "ids_text": ["a b", "", "c"],
     "count": np.arange(3)}
)  # fmt: skip


def as_parquet(folder: Path) -> bytes:
    write_parquet(str(folder / "t.parquet"), TABLE, compression="zstd")
    return (folder / "t.parquet").read_bytes()


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    content = as_parquet(tmp_path)
    uri = str(tmp_path / "t.parquet")
    assert read_parquet(uri).equals(TABLE)
    for names in (["ids"], ["ids_text", "ids"]):
        assert read_parquet(uri, names).equals(TABLE.select(names))
        batches = ParquetReader(io.BytesIO(content)).batches(names, rows=2)
        found = list(batches)
        assert [batch.num_rows for batch in found] == [2, 1]
        assert pa.Table.from_batches(found).equals(TABLE.select(names))
    told = "no column 'text'; there are ids, ids_text, count"
    with pytest.raises(ParquetError, match=told):
        read_parquet(uri, ["ids", "text"])
    with pytest.raises(ParquetError, match=told):
        list(ParquetReader(io.BytesIO(content)).batches(["text"], rows=2))
    with pytest.raises(FileNotFoundError):
        read_parquet(str(tmp_path / "gone"))


def test_a_column_is_read_at_once_unless_less_is_asked_for() -> None:
    """Of a file in a store each read is a request."""

    class Counted(io.BytesIO):
        longest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.longest = max(self.longest, len(found))
            return found

    content = io.BytesIO()
    pq.write_table(pa.table({"a": np.random.default_rng(1).random(400_000)}), content)
    whole, parts = Counted(content.getvalue()), Counted(content.getvalue())
    ParquetReader(whole).read()
    ParquetReader(parts, at_once=2**16).read()
    assert whole.longest > 3_000_000
    assert parts.longest < 2**21


def test_a_damaged_file_raises_one_kind_of_error(tmp_path: Path) -> None:
    content = as_parquet(tmp_path)
    rng = np.random.default_rng(1)
    refused = 0
    for place, bit in zip(rng.integers(0, len(content), 300), rng.integers(0, 8, 300), strict=True):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        try:
            ParquetReader(io.BytesIO(damaged)).read()
        except ParquetError:
            refused += 1
    assert refused > 100
    for cut in range(0, len(content), 9):
        with pytest.raises(ParquetError):
            ParquetReader(io.BytesIO(content[:cut])).read()


def test_damaged_word_counts_are_named(prepared: Prepared, tmp_path: Path) -> None:
    # As data were prepared before files carried digests, which tell it earlier: `test_proof`.
    (tmp_path / "data.json").write_text(replace(prepared.data, format=1, files={}).to_json())
    there = Path(prepared.uri) / "vocabulary.target.parquet"
    (tmp_path / there.name).write_bytes(there.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{tmp_path}/{there.name} cannot be read .*--force"):
        read_counts(PreparedData.read(str(tmp_path)), "target")


def thread_starters(tree: ast.AST, *, reads_parquet: bool = False) -> list[str]:
    """What lets Arrow start threads, and what is left to the module that ``reads_parquet``."""
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith(ELSEWHERE) and not (reads_parquet and name == "pyarrow.parquet"):
                found.append(f"line {node.lineno}: imports {name}")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        called = node.func.attr
        threads = given.get("use_threads", "True") != "False"
        if (
            (called in STARTERS and ast.unparse(node.func.value) in ("pq", "csv"))
            or ast.unparse(node.func) == "pc.field"
            or called == "sort_by"
            or (called == "group_by" and threads)
            or (called in ("iter_batches", "read_row_group", "read_row_groups") and threads)
            or (
                called == "read"
                and reads_parquet
                and threads
                and len(node.args) > 0
                and ast.unparse(node.func.value) == "self._file"
            )
            or (called == "ParquetFile" and given.get("pre_buffer") != "False")
        ):
            found.append(f"line {node.lineno}: calls {called}")
    return found


def test_parquet_is_read_in_one_place_and_without_threads() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {what}"
        for path in sorted((ROOT / "dist_embed").rglob("*.py"))
        for what in thread_starters(ast.parse(path.read_text()), reads_parquet=path == ONLY)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["import pyarrow.parquet as pq", "from pyarrow import parquet", "import pyarrow.dataset as ds",
     "pq.read_table(x)", "pq.ParquetFile(x)", "pq.ParquetFile(x, pre_buffer=True)",
     "file.iter_batches(9)", "csv.read_csv(x)", "t.filter(pc.field('a') > 1)", "t.sort_by('a')",
     "t.group_by('a').aggregate([])", "t.group_by('a', use_threads=True)"],
)  # fmt: skip
def test_thread_starters_are_found(code: str) -> None:
    assert len(thread_starters(ast.parse(code))) == 1


READS = """
import os, sys
import numpy as np
import pyarrow as pa
import pyarrow.compute
from dist_embed.data.corpus import ParallelText, read_pairs
from dist_embed.data.prepare import read_counts
from dist_embed.data.token_blocks import open_blocks
from dist_embed.data.token_shards import PreparedData, read_texts, read_tokens
from dist_embed.storage.parquet import write_parquet
from dist_embed.vectors.text import TextVectors

def threads():
    return len(os.listdir("/proc/self/task"))

data, folder = sys.argv[1:]
before = threads()
splits = PreparedData.read(data).splits
assert len(read_tokens(data, splits["train"].shards)) == 290
assert len(open_blocks(PreparedData.read(data), "train").read([1, 0])) == 120
assert len(read_texts(data, splits["test"])[0]) == 130
assert read_counts(PreparedData.read(data), "source").sum() > 0
table = pa.table({"source": ["a b"] * 9000, "target": ["c"] * 9000})
write_parquet(f"{folder}/x.parquet", table)
assert len(list(read_pairs(ParallelText(pairs=(f"{folder}/x.parquet",))))) == 9000
with open(f"{folder}/v.txt", "w") as file:
    file.write("a 1 2\\nb 3 4\\n")
for segment in TextVectors(f"{folder}/v.txt", has_header=False).segments(0, 1):
    assert segment.vectors([0, 1]).tolist() == [[1, 2], [3, 4]]
print(before, threads())
"""


def test_reading_starts_no_thread(prepared: Prepared, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READS, prepared.uri, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()
    assert after == before


COMMAND = """
import sys
from dist_embed.data.prepare import read_counts
from dist_embed.data.token_blocks import open_blocks
from dist_embed.data.token_shards import PreparedData, read_texts, read_tokens
data = sys.argv[1]
splits = PreparedData.read(data).splits
read_counts(PreparedData.read(data), "source")
read_tokens(data, splits["train"].shards)
open_blocks(PreparedData.read(data), "train").read([0])
read_texts(data, splits["test"])
"""


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_200_short_processes_end_with_0_under_load(prepared: Prepared) -> None:
    command = [sys.executable, "-c", COMMAND, prepared.uri]

    def exit_code(_: int) -> int:
        return subprocess.run(command, capture_output=True).returncode

    # More at once than there are cores, so that threads wait for one.
    with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
        codes = list(pool.map(exit_code, range(200)))
    assert codes == [0] * 200
