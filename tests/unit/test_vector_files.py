from __future__ import annotations

import gzip
import io
import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save, save_file

from dist_embed.vectors import arrays, number_lines, stream, text, word2vec_binary
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.file import HeldSegment, VectorFile, VectorFileError
from dist_embed.vectors.formats import detect_format, open_vectors
from dist_embed.vectors.stream import Forward, go_to, is_packed, open_stream, read_up_to
from tests.unit.vector_entries import read

PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
WORDS = ["the", ",", "über", "a" * 300, "東京", "naïve"]


def vectors_of(count: int, width: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def as_text(words: Sequence[str], vectors: NDArray[np.float32], header: bool = False) -> bytes:
    lines = [f"{len(words)} {vectors.shape[1]}"] if header else []
    lines += [f"{w} {' '.join(map(str, row))}" for w, row in zip(words, vectors, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def as_binary(words: Sequence[str], vectors: NDArray[np.float32], end: bytes = b"\n") -> bytes:
    parts = [f"{len(words)} {vectors.shape[1]}\n".encode()]
    for word, row in zip(words, vectors, strict=True):
        parts += [word.encode(), b" ", row.astype("<f4").tobytes(), end]
    return b"".join(parts)


def read_whole(uri: str) -> None:
    file = open_vectors(uri, None)
    assert not isinstance(file, FastTextBinary)
    read(file)


def saved(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("block", [16, 50, 333, 2**22])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_the_parts_of_a_text_file_are_its_lines_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int, block: int, name: str
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 2**22)
    vectors = vectors_of(len(WORDS), 5)
    for header in (False, True):
        content = as_text(WORDS, vectors, header)
        packed = PACKED[name.removeprefix("a.txt")](content)
        file = text.TextVectors(saved(tmp_path, name, packed), has_header=header)
        with monkeypatch.context() as small:
            small.setattr(text, "BLOCK_BYTES", block)
            words, found = read(file, num_parts)
        assert words == WORDS
        np.testing.assert_array_equal(found, vectors)
        assert file.width == 5
        assert file.num_stated == (len(words) if header else None)


word = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
number = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_text_gives_back_every_word_and_number(data: Any) -> None:
    width = data.draw(st.integers(1, 4))
    words = data.draw(st.lists(word, min_size=1, max_size=6))
    values = data.draw(
        st.lists(st.lists(number, min_size=width, max_size=width), min_size=len(words),
                 max_size=len(words))
    )  # fmt: skip
    vectors = np.array(values, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            uri = saved(Path(folder), "v.txt", as_text(words, vectors, header=True))
            file = text.TextVectors(uri, has_header=True)
            patch.setattr(text, "BLOCK_BYTES", data.draw(st.integers(1, 100)))
            found_words, found = read(file, data.draw(st.integers(1, 3)))
    assert found_words == words
    np.testing.assert_array_equal(found, vectors)


def test_glove_words_may_contain_spaces(tmp_path: Path) -> None:
    words = ["the", ". . .", "at name@domain.com", "1 1/2", "of"]
    vectors = vectors_of(5, 4)
    uri = saved(tmp_path, "glove.txt", as_text(words, vectors))
    assert detect_format(uri) == "glove"
    found_words, found = read(text.TextVectors(uri, has_header=False))
    assert found_words == words
    np.testing.assert_array_equal(found, vectors)


def test_spaces_at_the_end_and_windows_line_ends_do_not_count(tmp_path: Path) -> None:
    uri = saved(tmp_path, "v.vec", b"2 2\r\nyes 1 2 \r\nno 3 4 \r\n")
    assert read(open_vectors(uri, None))[0] == ["yes", "no"]  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_binary_word2vec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes, num_parts: int
) -> None:
    monkeypatch.setattr(word2vec_binary, "BLOCK_BYTES", 50)
    vectors = vectors_of(len(WORDS), 5)
    for name, pack in (("v.bin", bytes), ("v.bin.gz", gzip.compress)):
        uri = saved(tmp_path, name, pack(as_binary(WORDS, vectors, end)))
        assert detect_format(uri) == "word2vec-bin"
        words, found = read(word2vec_binary.Word2VecBinary(uri), num_parts)
        assert words == WORDS
        np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_matrices_with_a_list_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int, dtype: str
) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 40)
    values = torch.from_numpy(vectors_of(len(WORDS), 5)).to(getattr(torch, dtype))
    words_uri = saved(tmp_path, "words.txt", "\n".join(WORDS).encode() + b"\n")
    contents = {"safetensors": save({"weight": values, "bias": torch.zeros(3)})}
    if dtype != "bfloat16":
        buffer = io.BytesIO()
        np.save(buffer, values.numpy())
        contents["npy"] = buffer.getvalue()
    # A file need not be named after its format.
    files = [(f"{name}{ending}", kind) for kind in contents for name in (f"v.{kind}", "matrix")
             for ending in PACKED]  # fmt: skip
    for name, kind in files:
        pack = PACKED[name[name.rfind(".") :] if name.endswith((".gz", ".zst")) else ""]
        uri = saved(tmp_path, name, pack(contents[kind]))
        assert detect_format(uri) == kind
        file = open_vectors(uri, None, words=words_uri)
        assert not isinstance(file, FastTextBinary)
        words, found = read(file, num_parts)
        assert words == WORDS
        np.testing.assert_array_equal(found, values.float().numpy())


def test_any_url_that_fsspec_knows_is_read() -> None:
    vectors = vectors_of(len(WORDS), 5)
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    contents = {"v.txt": as_text(WORDS, vectors), "v.bin": as_binary(WORDS, vectors),
                "v.txt.gz": gzip.compress(as_text(WORDS, vectors)), "v.npy": buffer.getvalue(),
                "words": "\n".join(WORDS).encode()}  # fmt: skip
    for name, content in contents.items():
        with fsspec.open(f"memory://vectors/{name}", "wb") as out:
            out.write(content)
    for name in ("v.txt", "v.bin", "v.txt.gz", "v.npy"):
        words_uri = "memory://vectors/words" if name == "v.npy" else None
        file = open_vectors(f"memory://vectors/{name}", None, words=words_uri)
        assert not isinstance(file, FastTextBinary)
        words, found = read(file, 2)
        assert words == WORDS
        np.testing.assert_array_equal(found, vectors)


class CountedFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a store, read through fsspec's cache; as much read ahead as s3fs does, scaled."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched += min(end, self.size) - start
        return bytes(self.fs.files[self.path][start:end])


class CountedStore(AbstractFileSystem):  # type: ignore[misc]
    """A store that counts the bytes fetched from it."""

    protocol = "counted"
    files: ClassVar[dict[str, bytes]] = {}
    fetched = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> CountedFile:
        options["block_size"] = 50 * 2**10
        return CountedFile(self, path, mode, **options)


@pytest.mark.parametrize("name", ["v.txt", "v.npy"])
def test_all_workers_together_fetch_a_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (text, arrays):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 2**10)
    monkeypatch.setattr(text, "_TAIL_BYTES", 64)
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    store = fsspec.filesystem("counted")
    vectors, words = vectors_of(20_000, 4), [f"w{n}" for n in range(20_000)]
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    store.files |= {"v.txt": as_text(words, vectors), "v.npy": buffer.getvalue()}
    listed = saved(tmp_path, "words", "\n".join(words).encode()) if name == "v.npy" else None
    file = open_vectors(f"counted://{name}", None, words=listed)
    assert not isinstance(file, FastTextBinary)
    store.fetched = 0
    found_words, found = read(file, 8)
    assert found_words == words
    np.testing.assert_array_equal(found, vectors)
    assert store.fetched <= 1.1 * len(store.files[name])


@pytest.mark.parametrize("header", [b"", b"2 3\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n\n", b"\r\n\r\n \r\n"])
@pytest.mark.parametrize("first", [b"a 1 2 3", b"a\t1\t2\t3", b"a\t1 2 3"])
def test_marks_tabs_and_empty_lines_at_the_end_do_not_matter(
    tmp_path: Path, header: bytes, mark: bytes, end: bytes, first: bytes
) -> None:
    second = first.replace(b"a", b"b").replace(b"1", b"4")
    uri = saved(tmp_path, "v.txt", mark + header + first + b"\n" + second + end)
    file = open_vectors(uri, None)
    assert not isinstance(file, FastTextBinary)
    words, found = read(file, 2)
    assert words == ["a", "b"]
    assert found.tolist() == [[1, 2, 3], [4, 2, 3]]
    np.save(tmp_path / "v.npy", found)
    listed = saved(tmp_path, "words.txt", mark + b"a\nb" + end.replace(b" ", b""))
    file = open_vectors(str(tmp_path / "v.npy"), None, words=listed)
    assert not isinstance(file, FastTextBinary)
    assert read(file)[0] == ["a", "b"]


def test_runs_of_blanks_under_a_header_are_one(tmp_path: Path) -> None:
    uri = saved(tmp_path, "v.vec", b"3 2\na   1  2\nb\t\t3 \t4  \n  c 5    6\n")
    file = open_vectors(uri, None)
    assert not isinstance(file, FastTextBinary)
    words, found = read(file)
    assert words == ["a", "b", "c"]
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(4, np.float32), r"float32 of shape \(4,\); expected a matrix"),
        (np.zeros((2, 2, 2), np.float32), r"float32 of shape \(2, 2, 2\); expected a matrix"),
        (np.zeros((2, 3), np.int64), r"int64 of shape \(2, 3\); expected"),
        (np.zeros((2, 3), np.complex64), r"complex64 of shape \(2, 3\); expected"),
        (np.zeros((2, 3), np.longdouble), r"of shape \(2, 3\); expected"),
    ],
)
def test_an_array_that_is_no_matrix_is_refused(tmp_path: Path, values: Any, said: str) -> None:
    np.save(tmp_path / "v.npy", values)
    words = saved(tmp_path, "words", b"a\nb\nc\nd\n")
    with pytest.raises(VectorFileError, match=said):
        open_vectors(str(tmp_path / "v.npy"), None, words=words)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "header", ["{'descr': '<f4', 'shape': (2,", "{1: 2, 'descr': 3}", "(" * 500, "{[]: 1}",
               "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -2)}",
               "{'descr': '<f4', 'fortran_order': False, 'shape': (-2L, 2L)}"],
)  # fmt: skip
def test_a_damaged_header_of_an_array_is_told(tmp_path: Path, header: str) -> None:
    raw = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(16)
    uri, words = saved(tmp_path, "v.npy", content), saved(tmp_path, "words", b"a\nb\n")
    with pytest.raises(VectorFileError) as caught:
        open_vectors(uri, None, words=words)
    assert str(caught.value).startswith(uri)


def test_tabs_behind_a_word_with_spaces(tmp_path: Path) -> None:
    uri = saved(tmp_path, "v.txt", b"house\t1 2\nNew York\t3 4\nthe\t5 6\n")
    file = open_vectors(uri, "glove")
    assert not isinstance(file, FastTextBinary)
    words, found = read(file)
    assert words == ["house", "New York", "the"]
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]


VECTORS = vectors_of(3, 4)
GOOD = as_text(["a", "b", "c"], VECTORS, header=True)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("e.txt", b"", "is empty"),
        ("e.txt", b"\n\n", "is empty"),
        ("h.txt", b"word\n", "expected lines of a word and numbers"),
        ("n.txt", b"a 1 2\nb 3\nc 4 5\n", "line 2: 1 numbers, the width is 2"),
        ("n.txt", b"a 1 2\nb 3.5 4.5 5.5\nc 4 5\n", "line 2: 3 numbers, the width is 2"),
        ("n.txt", b"a 1.5 2.5\nb 3.5 4 5\nc 4 5\n", "line 2: 3 numbers, the width is 2"),
        ("n.txt", b"a 1 2\nb 3 4 5\nc 4 5\n", "line 2: 3 numbers, the width is 2"),
        ("n.txt", b"a 1 2\nb\nc 4 5\n", "line 2: 0 numbers"),
        ("n.txt", b"\na 1 2\n\n\nc 4 5\nd 6 x\n", r"line 6 \('d'\): 'x' is not a number"),
        ("n.txt", b"a 1 2\n\n\nc 4 5 6\n", "line 4: 3 numbers"),
        ("n.txt", b"a 1 2\nb 3 x\nc 4 5\n", r"line 2 \('b'\): 'x' is not a number"),
        ("n.txt", b"a 1 2\nb 3 nan\nc 4 5\n", r"line 2 \('b'\): 'nan' is not finite"),
        ("n.txt", b"a 1 2\nb 3 4\nc -inf 5\n", r"line 3 \('c'\): '-inf' is not finite"),
        ("n.txt", b"a 1 2\nb 3 1e60\nc 4 5\n", r"line 2 \('b'\): '1e60' is not finite"),
        ("n.txt", b"a 1 2\n 4\nc 4 5\n", "line 2: 0 numbers"),
        ("n.txt", b"a 1 2\nb  4\nc 4 5\n", r"line 2 \('b'\): '' is not a number"),
        ("n.vec", b"2 3\na 1 2 3\nb 3 4\n", "line 3: 2 numbers, the width is 3"),
        ("n.vec", b"2 3\na 1 2\nb 1 2 3\n", "line 2: 2 numbers, the width is 3"),
        ("n.vec", b"2 2\na 1 2\nb 3 4 5\n", "line 3: 3 numbers, the width is 2"),
        ("n.vec", b"2 2\na 1 2\nb 1e-05 4.5 5.5\n", "line 3: 3 numbers, the width is 2"),
        ("n.vec", b"2 2\na 4 1 2\nc 3 4\n", "line 2: 3 numbers, the width is 2"),
        ("n.vec", b"2 2\na\t4\t1\t2\nc\t3\t4\n", "line 2: 3 numbers, the width is 2"),
        ("n.vec", b"2 2\na 1 x\nb 1 2\n", r"line 2 \('a'\): 'x' is not a number"),
        ("n.vec", b"20 9\n" + b"a 1 2 3 4 5 6 7 8\n" * 20, "line 2: 8 numbers, the width is 9"),
        ("b.bin", b"2 99999999999999\na " + bytes(99), "line 1: expected .* the width"),
        ("t.txt.gz", gzip.compress(GOOD)[:-12], "cannot read"),
        ("t.txt.gz", b"no gzip at all", "expected lines of a word and numbers, found 'no gzip"),
        ("b.bin", as_binary(["a", "b"], VECTORS[:2])[:-6], "entry 2: the file ends before it"),
        ("b.bin", as_binary(["a", "b"], VECTORS[:2]) + b"more of it", "goes on behind them"),
        ("b.bin", as_binary(["a", "b"], np.full((2, 4), np.nan, np.float32)), "is not finite"),
        ("b.bin", struct.pack("<ii", 793712314, 11) + bytes(400), "version 11"),
        ("b.bin", struct.pack("<ii", 793712314, 12) + bytes(10), "ends at byte"),
        ("v.npy", b"\x93NUMPY\x01\x00", "needs the list of its words"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    uri = saved(tmp_path, name, content)
    with pytest.raises(VectorFileError, match=said) as caught:
        read_whole(uri)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_matrix_and_its_words_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "v.npy")
    np.save(uri, vectors_of(3, 4))
    right = saved(tmp_path, "words.txt", b"a\nb\nc\n")
    for block in (16, 2**22):  # a group of one row, and of many
        monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
        for listed, said in (
            (b"a\n", r"list\.txt: 1 words, but .*v\.npy has more rows; they may differ by one"),
            (b"a\nb\nc\nd\ne\n", r"list\.txt: more words than the 3 rows of .*v\.npy; they may"),
            (b"a\nb\nc\n\nd\n", "more words than the 3 rows"),
        ):
            file = open_vectors(uri, None, words=saved(tmp_path, "list.txt", listed))
            assert not isinstance(file, FastTextBinary)
            with pytest.raises(VectorFileError, match=said):
                read(file)
    for name, format in (("v.npy", "npy"), ("v.safetensors", "safetensors")):
        matrix = vectors_of(3, 4)
        matrix[2, 1] = np.inf
        if format == "npy":
            np.save(tmp_path / name, matrix)
        else:
            save_file({"x": torch.from_numpy(matrix)}, tmp_path / name)
        broken = str(tmp_path / name)
        file = open_vectors(broken, format, words=right)  # type: ignore[arg-type]
        assert not isinstance(file, FastTextBinary)
        with pytest.raises(VectorFileError, match=r"entry 3 \('c'\): a value is not finite"):
            read(file)
        saved(tmp_path, name, Path(broken).read_bytes()[:-5])
        with pytest.raises(VectorFileError, match="ends before row 3"):
            read(file)
    np.save(str(tmp_path / "e.npy"), np.zeros((3, 0), np.float32))
    with pytest.raises(VectorFileError, match="expected a matrix"):
        open_vectors(str(tmp_path / "e.npy"), None, words=right)
    np.save(str(tmp_path / "o.npy"), np.array([["a"]], dtype=object), allow_pickle=True)
    with pytest.raises(VectorFileError, match="holds objects, pickled"):
        open_vectors(str(tmp_path / "o.npy"), "npy", words=right)
    save_file({"x": torch.zeros(3, 4), "y": torch.zeros(3, 4)}, tmp_path / "two.safetensors")
    with pytest.raises(VectorFileError, match="more than one matrix, name one; it holds x, y"):
        open_vectors(str(tmp_path / "two.safetensors"), None, words=right)
    with pytest.raises(VectorFileError, match="no matrix 'z'"):
        open_vectors(str(tmp_path / "two.safetensors"), None, words=right, tensor="z")
    with pytest.raises(VectorFileError, match="no such file"):
        open_vectors(str(tmp_path / "none.txt"), None)


def safetensors(header: Any, data: bytes = bytes(64), size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def as_file(file: VectorFile | FastTextBinary) -> VectorFile:
    assert not isinstance(file, FastTextBinary)
    return file


def test_a_matrix_lies_where_its_header_says(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"made": "by hand"}, "i": entry([3, 1], [0, 24], "I64"),
        "x": entry([3, 1], [24, 36]), "y": entry([3, 2], [36, 48], "F16"),
        "z": entry([3], [48, 60]),
    }  # fmt: skip
    x, y = np.array([1, 2, 3], "<f4"), np.array([4, 5, 6, 7, 8, 9], "<f2")
    data = bytes(24) + x.tobytes() + y.tobytes() + bytes(12)
    uri = saved(tmp_path, "m", safetensors(header, data))
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    for name, expected in (("x", [[1], [2], [3]]), ("y", [[4, 5], [6, 7], [8, 9]])):
        file = as_file(open_vectors(uri, None, words=words, tensor=name))
        assert (file.num_stated, file.width) == (3, len(expected[0]))
        assert read(file)[1].tolist() == expected
    with pytest.raises(VectorFileError, match="more than one matrix, name one; it holds i, x, y"):
        open_vectors(uri, None, words=words)
    for name in ("z", "i", "__metadata__"):
        with pytest.raises(VectorFileError, match=f"no matrix '{name}'; it holds i, x, y, z"):
            open_vectors(uri, None, words=words, tensor=name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"12345", "not a safetensors file: no header"),
        (safetensors({}, size=100 * 2**20 + 1), "not a safetensors file: no header"),
        (safetensors({}), "no matrix of floating-point numbers; it holds nothing"),
        (safetensors({"i": entry([3, 1], [0, 24], "I64")}), "no matrix of floating.*it holds i"),
        (safetensors({"x": entry([3, 2], [0, 23])}), "'x' has 23 bytes for 3 × 2"),
        (safetensors({"x": entry([3, 2], [1, 26])}), "'x' has 25 bytes for 3 × 2"),
        (safetensors({"x": entry([3, 0], [0, 0])}), "'x' has 0 bytes for 3 × 0"),
        (safetensors({"x": entry([-1, 3], [12, 0])}), "both are whole numbers from 0"),
        (safetensors({"x": entry([3, 2], [-8, 16])}), r"data_offsets \[-8, 16\]; both are whole"),
        (safetensors({"x": entry([3.0, 2.0], [0, 24])}), r"shape \[3.0, 2.0\] .*whole numbers"),
        (safetensors({"x": entry([True, 6], [0, 24])}), r"shape \[True, 6\] .*whole numbers"),
        (safetensors({"x": {"shape": [1, 1]}}), "not a safetensors file"),
        (safetensors([]), "not a safetensors file"),
        (safetensors({"x": entry([3, 2], [0, 24])})[:30], "not a safetensors file"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    uri = saved(tmp_path, "m", content)
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    with pytest.raises(VectorFileError, match=said) as caught:
        open_vectors(uri, "safetensors", words=words)
    assert str(caught.value).startswith(uri)


def test_a_header_tells_a_safetensors_file_by_its_length_and_first_sign() -> None:
    largest = struct.pack("<Q", 100 * 2**20)
    assert arrays.is_safetensors(largest + b"{")
    assert not arrays.is_safetensors(largest + b"x")
    assert not arrays.is_safetensors(largest)
    assert not arrays.is_safetensors(struct.pack("<Q", 100 * 2**20 + 1) + b"{")


def test_a_matrix_with_a_long_header_is_read(tmp_path: Path) -> None:
    vectors = vectors_of(3, 4)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, vectors, version=(2, 0))
    uri = saved(tmp_path, "v.npy", buffer.getvalue())
    words = saved(tmp_path, "words", b"a\nb\nc")
    np.testing.assert_array_equal(read(as_file(open_vectors(uri, None, words=words)))[1], vectors)


@pytest.mark.parametrize("block", [16, 2**22])
def test_a_mistake_in_a_list_of_words_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
    np.save(tmp_path / "v.npy", vectors_of(3, 4))
    uri, words = str(tmp_path / "v.npy"), tmp_path / "words"
    packed = gzip.compress(b"a\nb\nc\n")
    for name, content, said in [
        ("words", b"a\nb\nc\xff\nd\ne", r"words: more words than the 3 rows"),
        ("words.gz", packed[:-9], r"cannot read .*words\.gz"),
    ]:
        words = tmp_path / name
        words.write_bytes(content)
        with pytest.raises(VectorFileError, match=said):
            read(as_file(open_vectors(uri, None, words=str(words))))
    words.write_bytes(packed)
    assert read(as_file(open_vectors(uri, None, words=str(words))))[0] == ["a", "b", "c"]
    # A mark of the byte order is one at the beginning alone.
    words = tmp_path / "words"
    words.write_bytes(b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb\r\nc\r\n\r\n")
    assert read(as_file(open_vectors(uri, None, words=str(words))))[0] == ["a", "\ufeffb", "c"]
    # A row without a word, or with one that is not UTF-8, belongs to none.
    words.write_bytes(b"\nb\xff\nc\n\n")
    assert read(as_file(open_vectors(uri, None, words=str(words))))[0] == ["", "", "c"]
    with pytest.raises(VectorFileError, match=r"cannot read .*gone: no such file"):
        read(as_file(open_vectors(uri, None, words=str(tmp_path / "gone"))))


@pytest.mark.parametrize("block", [16, 2**22])
@pytest.mark.parametrize("name", ["v.npy", "columns.npy", "packed.npz", "v.tsv"])
def test_one_word_more_or_less_than_rows_is_taken_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
    monkeypatch.setattr(arrays, "_COLUMNS_BLOCK_BYTES", block)
    monkeypatch.setattr(number_lines, "BLOCK_BYTES", 16 * block)
    vectors = vectors_of(3, 4)
    uri = str(tmp_path / name)
    if name == "v.tsv":
        np.savetxt(uri, vectors, "%.9g", "\t")
    elif name == "packed.npz":
        np.savez_compressed(uri, np.asfortranarray(vectors))
    else:
        np.save(uri, np.asfortranarray(vectors) if name == "columns.npy" else vectors)
    for listed, words, said in (
        (b"a\nb\nc\n\n", ["a", "b", "c"], None),
        (b"a\nb\nc\nd\n\n", ["a", "b", "c"], ("more", "word")),
        (b"a\nb\n\nd\n", ["a", "b", ""], ("more", "word")),
        (b"a\nb\n", ["a", "b"], ("less", "row")),
    ):
        file = as_file(open_vectors(uri, None, words=saved(tmp_path, "list.txt", listed)))
        for num_parts in (1, 2):
            parts = [list(file.segments(part, num_parts)) for part in range(num_parts)]
            segments = sorted((s for part in parts for s in part), key=lambda s: s.origin)
            assert [word for s in segments for word in s.words] == words
            found = [s.vectors(range(len(s.words))) for s in segments]
            np.testing.assert_array_equal(np.concatenate(found), vectors[: len(words)])
            if said is None:
                assert file.doubt is None
            else:
                told = r"list\.txt has one word {0} than .*{2} has rows \(3\); .* the last {1} was"
                assert re.search(told.format(*said, name), file.doubt or "")


def test_a_list_of_words_belongs_to_a_matrix_alone(tmp_path: Path) -> None:
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    for name, content, kind in [
        ("t", GOOD, "word2vec"), ("b", as_binary(["a", "b", "c"], VECTORS), "word2vec-bin"),
        ("g", as_text(["a", "b", "c"], VECTORS), "glove"),
    ]:  # fmt: skip
        with pytest.raises(VectorFileError, match=f"belongs to a matrix, this is {kind}"):
            open_vectors(saved(tmp_path, name, content), None, words=words)
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(VectorFileError, match="a matrix needs the list of its words"):
        open_vectors(str(tmp_path / "v.npy"), None)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (b"2 1\na 0.5\nb\t1\r\n", "word2vec"), (b"2 1\na \x1f\x00\x00\x80", "word2vec-bin"),
        (b"2 1\na \x20\x20\x20\x20", "word2vec"), (b"\xef\xbb\xbf2 1\na 0.5\n", "word2vec"),
        (b"2 1\n\x1f\t 0.5\nb 1", "word2vec"), (b"2 99\na\x1f 0.5 1", "word2vec-bin"),
        (b"PAR1\x15", "parquet"), (b"2 x\na 0.5\n", "glove"), (b"a 2\n", "glove"),
        (b"PAR1 2 3\n", "glove"),
        (b"1 2 3\n", "glove"), (b"12\n", "glove"),
        (b"\x93NUMPY\x01\x00", "npy"), (struct.pack("<i", 793712314), "fasttext-bin"),
    ],
)  # fmt: skip
def test_the_first_bytes_tell_the_format(tmp_path: Path, head: bytes, format: str) -> None:
    assert detect_format(saved(tmp_path, "x", head)) == format


def test_entries_are_named_by_their_number_in_the_file() -> None:
    values = np.array([[1, 2], [3, np.nan], [np.inf, 5]])
    held = HeldSegment("file", 10, ["a", "b", "c"], values)
    found = held.vectors([0])
    assert (found.tolist(), found.dtype) == ([[1, 2]], np.float32)
    assert held.vectors([]).shape == (0, 2)
    for chosen, said in (([0, 2], r"entry 13 \('c'\)"), ([1, 2], r"entry 12 \('b'\)")):
        with pytest.raises(VectorFileError, match=f"file, {said}: a value is not finite"):
            held.vectors(chosen)


@pytest.mark.parametrize("buffer", [1, 4, 2**20])
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_a_file_is_read_forwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int, name: str
) -> None:
    monkeypatch.setattr(stream, "_BUFFER_BYTES", buffer)
    content = b"one two  four;end"
    uri = saved(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    with Forward(uri) as file:
        assert (file.take(0), file.at) == (b"", 0)
        assert file.until(b" ", 3) is None  # it is the fourth sign
        assert file.at == 0
        assert (file.until(b" ", 4), file.at) == (b"one", 4)
        assert file.ahead(100) == 13
        assert (file.take(3), file.at) == (b"two", 7)
        assert (file.until(b" ", 9), file.until(b" ", 9), file.at) == (b"", b"", 9)
        assert file.until(b" ", 99) is None
        assert (file.until(b";", 5), file.at) == (b"four", 14)
        assert (file.ahead(2), file.ahead(3), file.ahead(4)) == (2, 3, 3)
        assert (file.take(9), file.at) == (b"end", 17)
        assert (file.take(1), file.ahead(1), file.at) == (b"", 0, 17)


def test_as_much_is_read_as_there_is(tmp_path: Path) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 2))

    assert read_up_to(Trickle(b"abcdefg"), 5, "x") == b"abcde"
    assert read_up_to(Trickle(b"abc"), 5, "x") == b"abc"
    for name, pack in (("x", bytes), ("x.gz", gzip.compress)):
        uri = saved(tmp_path, name, pack(bytes(range(100))))
        with open_stream(uri) as file:
            packed = name == "x.gz"
            assert is_packed(uri) is packed
            go_to(file, 0, 7, uri, packed=packed)
            assert file.read(3) == bytes([7, 8, 9])
            go_to(file, 10, 10, uri, packed=packed)
            assert file.read(1) == bytes([10])
            go_to(file, 11, 50, uri, packed=packed)
            assert file.read(1) == bytes([50])
            if packed:
                with pytest.raises(VectorFileError, match=r"x\.gz: ends before byte 101"):
                    go_to(file, 51, 101, uri, packed=packed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1 0\na \n", r"line 1: expected .* the width \(up to 65,536\)"),
        (b"1 65537\na " + bytes(9), "line 1: expected"),
        (b"x 2\na " + bytes(9), "line 1: expected"),
        (b"1 1" + b" " * 5000 + b"\na " + bytes(4), "line 1: expected"),
        (b"1 65536\na " + bytes(9), "entry 1: the file ends before it; the header promises 1"),
        (b"2 1\na " + bytes(4), "entry 2: the file ends before it; the header promises 2"),
        (b"2 1\na " + bytes(4) + b"b", "entry 2: the file ends before it"),
        (b"2 1\na " + bytes(4) + b"b" * 4096 + b" ", "entry 2: no word found; the width in"),
        (b"1 1\na " + bytes(4) + b"\n\nx", "promises 1 vectors of width 1, the file goes on"),
    ],
)
def test_what_is_wrong_with_a_binary_file_is_said(
    tmp_path: Path, content: bytes, said: str
) -> None:
    uri = saved(tmp_path, "v.bin", content)
    with pytest.raises(VectorFileError, match=said) as caught:
        read(word2vec_binary.Word2VecBinary(uri))
    assert str(caught.value).startswith(uri)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("word", ["new york", "in a", "the old man", "a \u00a0"])
def test_words_with_blanks_in_a_binary_file_are_refused(
    tmp_path: Path, word: str, end: bytes
) -> None:
    """As gensim writes them, and reads others: nothing tells where such a word ends."""
    words = [f"w{i}" for i in range(40)]
    words[7::8] = [f"{word}{i}" for i in range(7, 40, 8)]
    uri = saved(tmp_path, "v.bin", as_binary(words, vectors_of(40, 16), end))
    with pytest.raises(VectorFileError, match=r"v\.bin, entry \d+: is no word and vector; .*blank"):
        read(word2vec_binary.Word2VecBinary(uri))


@pytest.mark.parametrize("rest", ["age", "ages", "yorker", "AGE", "man man", "caf\u00e9s"])
def test_one_word_with_a_blank_is_refused_however_long_its_rest(tmp_path: Path, rest: str) -> None:
    """Values stay whole behind a rest of 4 or 8 bytes with its blank: they are no others."""
    words = [f"w{i}" for i in range(40)]
    words[7] = f"new {rest}"
    uri = saved(tmp_path, "v.bin", as_binary(words, vectors_of(40, 16), b""))
    with pytest.raises(VectorFileError, match=r"v\.bin, entry \d+: .*blank"):
        read(word2vec_binary.Word2VecBinary(uri))


def test_tiny_values_of_a_binary_file_are_read(tmp_path: Path) -> None:
    """Of a column that has hardly anything, or of vectors that have decayed."""
    for tiny in (1.9e-19, 1e-30, 1e-40, *np.frombuffer(b"age red ", "<f4").tolist()):
        vectors = vectors_of(len(WORDS), 16)
        vectors[:, 0] = vectors[2] = tiny
        uri = saved(tmp_path, "v.bin", as_binary(WORDS, vectors, b""))
        words, found = read(word2vec_binary.Word2VecBinary(uri))
        assert words == WORDS
        np.testing.assert_array_equal(found, vectors)


def test_control_characters_may_be_in_words_of_a_binary_file(tmp_path: Path) -> None:
    words = ["a\0b", "\x01", "\x85", "\u2028", "\r"]
    for end in (b"\n", b""):
        uri = saved(tmp_path, "v.bin", as_binary(words, vectors_of(5, 3), end))
        assert read(word2vec_binary.Word2VecBinary(uri))[0] == words


def test_a_word_of_a_binary_file_has_up_to_4095_bytes(tmp_path: Path) -> None:
    longest = "b" * 4095
    content = b"2 1\na " + bytes(4) + longest.encode() + b" " + bytes(4) + b"\n\n"
    file = word2vec_binary.Word2VecBinary(saved(tmp_path, "v.bin", content))
    assert read(file)[0] == ["a", longest]


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_mistake_far_behind_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int, num_parts: int
) -> None:
    lines = [f"w{n} {n} 1" for n in range(40)]
    for place, line, said in [
        (33, "w33 1 x", r"line 35 \('w33'\): 'x' is not a number"),
        (39, "w39 1", "line 41: 1 numbers"),
        (30, "w30 1e39 nan", r"line 32 \('w30'\): '1e39' is not finite"),
    ]:  # fmt: skip
        # Behind the header, which counts as a line.
        content = "\n".join(["40 2", *lines[:place], line, *lines[place + 1 :]]).encode()
        packed = PACKED[name.removeprefix("v.txt")](content)
        file = as_file(open_vectors(saved(tmp_path, name, packed), None))
        with monkeypatch.context() as small:
            small.setattr(text, "BLOCK_BYTES", block)
            with pytest.raises(VectorFileError, match=rf"{name}, {said}"):
                read(file, num_parts)


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_a_line_without_an_end_is_refused_by_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (text, stream):
        monkeypatch.setattr(module, "LONGEST_LINE", 300)
    monkeypatch.setattr(text, "_TAIL_BYTES", 16)
    long, pack = b"c" * 290, PACKED[name.removeprefix("v.txt")]
    told = rf"{name}, line 4: longer than the 300 bytes that a line may have, so that none fills"
    for count, is_read in ((1, True), (3, False)):
        content = b"3 2\na 1 2\nb 3 4\n" + long * count + b" 5 6\nd 7 8\n"
        file = as_file(open_vectors(saved(tmp_path, name, pack(content)), None))
        with monkeypatch.context() as small:
            small.setattr(text, "BLOCK_BYTES", 20)
            for num_parts in (1, 3):
                if is_read:
                    assert read(file, num_parts)[0][2] == long.decode()
                    continue
                with pytest.raises(VectorFileError, match=told):
                    read(file, num_parts)
    numbers = saved(tmp_path, name, pack(b"1 2\n" * 3 + b"1" * 301))
    with pytest.raises(VectorFileError, match=told):
        read(as_file(open_vectors(numbers, "tsv", words=saved(tmp_path, "w", b"a\nb\nc\nd\n"))))
    np.save(tmp_path / "v.npy", vectors_of(4, 2))
    words = saved(tmp_path, name, pack(b"a\nb\nc\n" + b"d" * 301))
    with pytest.raises(VectorFileError, match=told):
        read(as_file(open_vectors(str(tmp_path / "v.npy"), None, words=words)))


NO_HEADERS = ["3 0", "3", "3 65537", "3 " + "9" * 20, "9" * 5000 + " 2", "a 1 2", "3 -2"]


@pytest.mark.parametrize("first", [*NO_HEADERS, "x" * 100 + " 1"])
def test_a_header_that_was_promised_must_be_there(tmp_path: Path, first: str) -> None:
    uri = saved(tmp_path, "v.vec", f"{first}\na 1 2 3\n".encode())
    told = (
        r"v\.vec, line 1: expected the number of words and the width \(up to 65,536\), found "
        f"'{first[:80]}'$"
    )
    with pytest.raises(VectorFileError, match=told):
        open_vectors(uri, "word2vec")
    with pytest.raises(VectorFileError):
        read_whole(uri)


def test_a_matrix_without_rows_has_no_entries(tmp_path: Path) -> None:
    words = saved(tmp_path, "words", b"")
    np.save(tmp_path / "v.npy", np.zeros((0, 3), np.float32))
    saved(tmp_path, "v.safetensors", safetensors({"x": entry([0, 3], [0, 0])}))
    for name in ("v.npy", "v.safetensors"):
        file = as_file(open_vectors(str(tmp_path / name), None, words=words))
        assert list(file.segments(0, 1)) == []


def test_the_width_without_a_header_is_that_of_most_lines(tmp_path: Path) -> None:
    for content, width in [
        (b"a 1 2 3", 3), (b"New York 1 2\na 1 2\nb 1 2\n", 2), (b"a\t1\t2\nb 1 2\n\n\n\n\n", 2),
        (b"\n\n\n\na 1 2 \n", 2),
    ]:  # fmt: skip
        assert text.TextVectors(saved(tmp_path, "v", content), has_header=False).width == width
    # A line that the first block cuts off does not count.
    many = b"a 1 2\nb 1"
    assert text.TextVectors(saved(tmp_path, "v", many), has_header=False).width == 2
