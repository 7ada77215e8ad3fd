"""Files of vectors as other tools write them, and as people have them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from numpy.typing import NDArray

from dist_embed.config.load import config_from_dict
from dist_embed.config.paths import path_of
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.errors import UserError
from dist_embed.export.projector import projector_files
from dist_embed.storage import uri as storage
from dist_embed.training.vector_files import check_vectors
from dist_embed.vectors import arrays, number_lines, parquet, text
from dist_embed.vectors.fasttext_binary import MAGIC, FastTextBinary
from dist_embed.vectors.file import VectorFileError
from dist_embed.vectors.formats import detect_format, open_vectors
from dist_embed.vectors.match import VocabularyKeys
from dist_embed.vectors.settings import Format
from dist_embed.vectors.write import Block, write_vectors
from tests.unit.vector_entries import read

VECTORS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
PLAIN = b"a 1 2\nb 3 4\nc 5 6\n"


def saved(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def npy_of(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def found_in(
    uri: str, format: Format | None = None, **options: Any
) -> tuple[list[str], NDArray[np.float32]]:
    file = open_vectors(uri, format, **options)
    assert not isinstance(file, FastTextBinary)
    return read(file, 2)


@pytest.mark.parametrize("header", [b"", b"4 2\n"])
@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"of  0.5 1", "of"), (b"of 0.5  1 ", "of"), (b" of 0.5 1", "of"),
        (b"new york 0.5 1", "new york"), (b"new  york 0.5 1", "new  york"),
        (b"12\t0.5 1", "12"), (b"12 000\t0.5 1", "12 000"), (b"Apollo 11 \t0.5 1", "Apollo 11"),
        (b"a\tb 0.5 1", "a\tb"), (b"a\t5 0.5 1", "a\t5"), (b"\x1f\x85 0.5 1", ""),
        (b"\x1f 0.5 1", "\x1f"), (b" 0.5 1", ""), (b"\t0.5 1", ""), ("na\xefve".encode("latin-1")
         + b" 0.5 1", ""), (b"caf\xc3 0.5 1", ""),
    ],
)  # fmt: skip
def test_a_line_ends_with_the_numbers_and_its_beginning_is_the_word(
    tmp_path: Path, header: bytes, line: bytes, word: str
) -> None:
    for place, lines in ((0, [line, *PLAIN.split(b"\n")]), (3, [PLAIN.rstrip(), line])):
        uri = saved(tmp_path, "v.txt", header + b"\n".join(lines))
        words, vectors = found_in(uri)
        assert (len(words), words[place]) == (4, word)
        assert vectors[place].tolist() == [0.5, 1]


def test_a_tab_decides_where_the_word_ends(tmp_path: Path) -> None:
    """As wikipedia2vec writes, whose titles of articles have spaces and numbers."""
    lines = b"the\t1 2\nENTITY/Apollo 11\t3 4\nENTITY/1 2 3\t5 6\n"
    for header in (b"", b"3 2\n"):
        words, vectors = found_in(saved(tmp_path, "v.txt", header + lines))
        assert words == ["the", "ENTITY/Apollo 11", "ENTITY/1 2 3"]
        np.testing.assert_array_equal(vectors, VECTORS)
    in_columns = b"the\t1\t2\n12 000\t3\t4\nENTITY/1 2 3 \t 5\t6\r\n"
    for header in (b"", b"3 2\n"):
        words, vectors = found_in(saved(tmp_path, "v.txt", header + in_columns))
        assert words == ["the", "12 000", "ENTITY/1 2 3"]
        np.testing.assert_array_equal(vectors, VECTORS)
    for wrong in (b"12\t000\t3\t4", b"12 000\t3 4 5", b"12 0\t1\t3\t4", b"12 000 3\t4"):
        with pytest.raises(VectorFileError, match=r"line 2: [34] numbers, the width is 2"):
            found_in(saved(tmp_path, "v.txt", in_columns.replace(b"12 000\t3\t4", wrong)))
    too_many = b"the\t1 2\na\t3 4 5\nc\t5 6\n"
    with pytest.raises(VectorFileError, match="line 2: 3 numbers, the width is 2"):
        found_in(saved(tmp_path, "v.txt", too_many))


def as_pzstd(content: bytes) -> bytes:
    """Each frame behind one that is skipped, which has the other's size."""
    frame = zstandard.compress(content)
    return b"\x50\x2a\x4d\x18\4\0\0\0" + len(frame).to_bytes(4, "little") + frame


def zipped_on_a_mac(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("in/v.txt", content)
        archive.writestr("in/.DS_Store", b"x")
        archive.writestr("__MACOSX/in/._v.txt", b"x")
    return packed.getvalue()


@pytest.mark.parametrize("name", ["v.GZ", "v", "v.txt", "v.zst"])
@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, as_pzstd, zipped_on_a_mac, bytes]
)
def test_the_first_bytes_tell_how_a_file_is_compressed(
    tmp_path: Path, name: str, pack: Any
) -> None:
    words, vectors = found_in(saved(tmp_path, name, pack(PLAIN)))
    assert words == ["a", "b", "c"]
    np.testing.assert_array_equal(vectors, VECTORS)


def archives(folder: Path) -> list[tuple[str, Path]]:
    """A zip and tars with two files of vectors."""
    found = [("zip", folder / "glove.zip")]
    with zipfile.ZipFile(found[0][1], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/v.2d.txt", PLAIN)
        archive.writestr("in/v.one.txt", b"x 1 2\n")
    for mode, name in (
        ("w", "v.tar"),
        ("w:gz", "v.tar.gz"),
        ("w:bz2", "v.tar.bz2"),
        ("w:gz", "v.tgz"),
    ):
        found.append(("tar", folder / name))
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            for member, content in (("in/v.2d.txt", PLAIN), ("in/v.one.txt", b"x 1 2\n")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return found


def test_a_file_in_an_archive_is_read_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, path in archives(tmp_path):
        for place in (path, path.name):
            uri = f"{kind}://in/v.2d.txt::{place}"
            assert found_in(uri)[0] == ["a", "b", "c"]
            assert storage.absolute(uri) == f"{kind}://in/v.2d.txt::{path}"
            assert path_of(uri) == str(place)
        assert found_in(f"{kind}://in/v.one.txt::{path}")[0] == ["x"]
        with pytest.raises(
            VectorFileError, match=r"none\.txt::.*: no such file; there are in/v.2d"
        ):
            open_vectors(f"{kind}://none.txt::{path}", None)
        with pytest.raises(VectorFileError, match=rf"{kind}://NAME::"):
            open_vectors(str(path), None)
    with pytest.raises(VectorFileError, match="no such file"):
        open_vectors(f"zip://in/v.2d.txt::{tmp_path}/gone.zip", None)
    data = gzip.compress(PLAIN)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.gz", data)
        archive.writestr("b.gz", data)
    assert found_in("zip://b.gz::twice.zip")[0] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["v.tar.gz", "v.tar.bz2", "v.tgz", "v.tar"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_an_archive_that_is_damaged_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_cut: bool
) -> None:
    """It is no store that comes back."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits for a store"))
    (path,) = [path for _, path in archives(tmp_path) if path.name == name]
    content = path.read_bytes()
    cut = content[: 700 if name == "v.tar" else len(content) // 2]
    path.write_bytes(cut if is_cut else b"no archive" * 99)
    fsspec.filesystem("memory").pipe_file(f"/{path}", path.read_bytes())
    uris = [f"tar://in/v.one.txt::{path}", f"tar://in/v.one.txt::memory:/{path}"]
    # What bzip2's reader says of no archive, a store may say as well.
    for uri in uris[: 1 if name == "v.tar.bz2" and not is_cut else 2]:
        with pytest.raises(UserError, match=rf"cannot (?:read|open) .*{uri}"):
            open_vectors(uri, None)


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
@pytest.mark.parametrize("type", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type: str, order: Any, rows_at_once: int
) -> None:
    size = rows_at_once * 2 * np.dtype(type).itemsize
    monkeypatch.setattr(arrays, "BLOCK_BYTES", size)
    monkeypatch.setattr(arrays, "_COLUMNS_BLOCK_BYTES", size)
    np.save(tmp_path / "v.npy", np.asarray(VECTORS.astype(type), order=order))
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    found, vectors = found_in(str(tmp_path / "v.npy"), words=words)
    assert found == ["a", "b", "c"]
    np.testing.assert_array_equal(vectors, VECTORS)
    packed = saved(tmp_path, "v.npy.gz", gzip.compress((tmp_path / "v.npy").read_bytes()))
    np.savez(tmp_path / "v.npz", np.asarray(VECTORS.astype(type), order=order))
    for uri in (packed, str(tmp_path / "v.npz"), f"zip://arr_0.npy::{tmp_path}/v.npz"):
        found, vectors = found_in(uri, words=words)
        assert found == ["a", "b", "c"]
        np.testing.assert_array_equal(vectors, VECTORS)


def test_columns_of_a_compressed_array_are_unpacked_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Any
) -> None:
    """Each worker its own rows alone, in a folder that goes with it."""
    monkeypatch.setattr(arrays, "_COLUMNS_BLOCK_BYTES", 2 * 3 * 4)
    values = np.random.default_rng(1).standard_normal((11, 3)).astype(np.float32)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    np.savez_compressed(tmp_path / "v.npz", np.asfortranarray(values))
    words = saved(tmp_path, "words", b"".join(b"w%d\n" % n for n in range(11)))
    file = open_vectors(f"{tmp_path}/v.npz", None, words=words)
    assert not isinstance(file, FastTextBinary)
    for num_parts in (1, 2, 3, 9):
        found, vectors = read(file, num_parts)
        assert found == [f"w{n}" for n in range(11)]
        np.testing.assert_array_equal(vectors, values)
    segments = file.segments(0, 2)  # of rows 0, 1, 4, 5, 8, 9
    next(segments)
    assert [path.stat().st_size for path in scratch.rglob("*") if path.is_file()] == [6 * 3 * 4]
    del segments
    assert list(scratch.iterdir()) == []
    np.save(tmp_path / "v.npy", np.asfortranarray(values))
    content = gzip.compress((tmp_path / "v.npy").read_bytes()[:-1])
    cut = saved(tmp_path, "v.gz", content)
    with pytest.raises(VectorFileError, match=r"v\.gz: ends before row 11"):
        found_in(cut, words=words)
    with full_disk(), pytest.raises(OSError, match=rf"File too large: '{scratch}/.*/columns'"):
        read(file)
    assert list(scratch.iterdir()) == []


def test_arrays_of_a_npz(tmp_path: Path) -> None:
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "one.npz", VECTORS)
        save(tmp_path / "two.npz", x=VECTORS, y=VECTORS + 1)
        for uri, more in ((f"{tmp_path}/one.npz", 0), (f"zip://y.npy::{tmp_path}/two.npz", 1)):
            found, vectors = found_in(uri, words=words)
            assert found == ["a", "b", "c"]
            np.testing.assert_array_equal(vectors, VECTORS + more)
        with pytest.raises(VectorFileError, match=r"2 files in it; name one, as zip://NAME::.*npz"):
            open_vectors(f"{tmp_path}/two.npz", None, words=words)


def test_too_large_a_number_of_an_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1e300, 1]]))
    words = saved(tmp_path, "words", b"a\n")
    with pytest.raises(VectorFileError, match=r"entry 1 \('a'\): a value is not finite"):
        found_in(str(tmp_path / "v.npy"), words=words)


def floret_model(mode: int = 0, hashes: int = 2, update_rate: int = 100) -> bytes:
    numbers = (10, 5, 1, 1, 5, 1, 2, 2, 50, 3, 6, mode, hashes, update_rate)
    return MAGIC + struct.pack("<i14id", 12, *numbers, 1e-4) + bytes(99)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"vectors": 1}), r"is pickled, as gensim's \.kv .*save_word2vec_format"),
        (pickle.dumps([1], protocol=2), "is pickled"),
        (b"5000 10 2 3 2 2166136261 < >\n0 " + b"0.5 " * 10, r"table of floret.*give the \.vec"),
        (floret_model(), r"is a model of floret, .*give the \.vec file"),
        (floret_model(mode=1, hashes=1, update_rate=1), "is a model of floret"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5"),
        (b"<!DOCTYPE html>\n<html lang='en'>\n", "is a web page"),
        (b"3 2\nthis is text\n", r"line 2 \('this'\): 'is' is not a number"),
        (b"3 4\nthis is text\n", "line 2: 2 numbers, the width is 4"),
        (b"word,x,y\na,1,2\n", "expected lines of a word and numbers, found 'word,x,y'"),
        (bytes(range(256)) * 9, "expected lines of a word and numbers"),
        (b"0.5 1\n2 -3\n4.5 6\n", "lines of numbers alone; give the list of their words"),
        (b"2 2\n", "holds no vectors, but a header"), (b"0 2", "holds no vectors, but a header"),
        (PLAIN.replace(b"\n", b"\r"), "lines that end with CR alone"),
        (PLAIN.decode().encode("utf-16"), "is in UTF-16"),
        (PLAIN.decode().encode("utf-16-be"), "is in UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(9), "is packed by 7-Zip"),
        (b"\x04\x22M\x18" + bytes(9), "is packed by .*LZ4"),
        (b"\x1f\x9d\x90" + bytes(9), "is packed by .*compress"),
        (b"ARROW1\0\0" + bytes(9), "is Arrow's"),
        (gzip.compress(gzip.compress(PLAIN)), "is compressed twice"),
        (bz2.compress(pickle.dumps(PLAIN)), "is pickled"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_vectors_is_named_and_gets_no_width(
    tmp_path: Path, content: bytes, said: str
) -> None:
    uri = saved(tmp_path, "v", content)
    with pytest.raises(VectorFileError, match=said) as caught:
        open_vectors(uri, None)
    assert str(caught.value).startswith(uri)


@pytest.mark.parametrize(
    "content",
    [
        b"the 1061396\nof 593677\n", b"the\t1061396\nof\t593677\n",  # GloVe's vocab.txt
        "<unk>\t0\n<s>\t0\n▁the\t-3.2\n".encode(),  # SentencePiece's .vocab, unigram
        "<unk>\t0\n<s>\t-1\n▁t\t-2\n".encode(),  # and BPE
        b"t h 5\nth e</w> 4\n", b"th@@ 1061396\ne 9\n",  # subword-nmt's codes and vocabulary
        b"0\tthe\t1061396\n1\tof\t593677\n", b"2\n0\tthe\t2\n1\tof\t1\n",  # gensim's Dictionary
        b"dim 100\nws 5\nepoch 5\n",  # `fasttext dump … args`
        b"0 1\n00 1\n1 7\nthe 9\n", b"10\t1\n11\t1\n",  # whose first line is like a header
    ],
)  # fmt: skip
def test_a_list_of_counts_is_no_file_of_vectors(tmp_path: Path, content: bytes) -> None:
    for name, pack in (("counts", bytes), ("counts.gz", gzip.compress)):
        uri = saved(tmp_path, name, pack(content))
        format = detect_format(uri)
        with pytest.raises(VectorFileError, match=f"counts.*one number.*`format: {format}`"):
            open_vectors(uri, None)


@pytest.mark.parametrize(
    "content",
    [
        b"1061396 the\n593677 of\n", b"   1061396 the\n     12 2000\n      9 of\n",  # uniq -c
        b"3\nthe 1061396 word\nof 593677 word\n</s> 5 word\n",  # `fasttext dump … dict`
    ],
)  # fmt: skip
def test_other_lists_of_counts_have_no_numbers_behind_words(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(VectorFileError, match="expected lines of a word and numbers"):
        open_vectors(saved(tmp_path, "counts", content), None)


def test_vectors_of_one_number_are_read_with_a_header_or_where_they_are_meant(
    tmp_path: Path,
) -> None:
    lines = b"a 1\nb 0.5\nc -2\n"
    for content, format in (
        (b"3 1\n" + lines, None),
        (lines, "glove"),
        (b"3 1\na 7\nb 8\nc 9\n", "word2vec"),
    ):
        words, vectors = found_in(saved(tmp_path, "v", content), format)  # type: ignore[arg-type]
        assert (words, vectors.shape) == (["a", "b", "c"], (3, 1))


def test_what_torch_saves_is_not_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "v.bin")
    with pytest.raises(VectorFileError, match=r"v\.bin: is what torch.save writes, pickled"):
        open_vectors(str(tmp_path / "v.bin"), None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"the 1061396\nof 593677\nto 593677\n", "a number behind each word"),
        (b"January\t1\nFebruary\t2\nMarch\t3\n", "a number behind each word"),
        (b'["the", "of"]', "is JSON"), (b'{\n "the": 0,\n "of": 1\n}\n', "is JSON"),
        ("the\nof\nto\n".encode("utf-16"), "is in UTF-16"), (b"the\rof\rto", "CR alone"),
        (pickle.dumps(["the", "of", "to"]), "is an array or pickled"),
        (npy_of(np.array(["the", "of", "to"])), "is an array or pickled"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_of_words_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """A list with a line more or less than rows is taken: nothing else would tell."""
    words = saved(tmp_path, "words", content)
    for name, matrix in (("v.npy", npy_of(VECTORS)), ("v.tsv", b"1\t2\n3\t4\n5\t6\n")):
        with pytest.raises(VectorFileError, match=rf"{words}: .*{said}.*a word a line"):
            open_vectors(saved(tmp_path, name, matrix), None, words=words)


def test_words_that_look_like_anything_else_are_words(tmp_path: Path) -> None:
    for words in (["[", '"', '["', "{", "1990"], ["January 1", "January 2", "January 3"]):
        listed = saved(tmp_path, "words", "\n".join(words).encode())
        uri = saved(tmp_path, "v.npy", npy_of(np.zeros((len(words), 2), np.float32)))
        file = open_vectors(uri, None, words=listed)
        assert not isinstance(file, FastTextBinary)
        assert read(file)[0] == words


def test_words_that_are_numbers_may_begin_a_list(tmp_path: Path) -> None:
    """As a sorted one does: only words are whole."""
    uri = saved(tmp_path, "v.txt", b"0 0.5 1.0\n0.5 2.0 -3.0\n00 4.5 6.0\n")
    assert found_in(uri)[0] == ["0", "0.5", "00"]


def test_a_tensor_belongs_to_safetensors_alone(tmp_path: Path) -> None:
    words = saved(tmp_path, "words", b"a\nb\nc\n")
    uri = saved(tmp_path, "v.npy", npy_of(VECTORS))
    with pytest.raises(VectorFileError, match=r"tensor='x' is not allowed: this is npy"):
        open_vectors(uri, None, words=words, tensor="x")


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([[1.0, "x"]], dtype=object), allow_pickle=True)
    words = saved(tmp_path, "words", b"a\n")
    with pytest.raises(VectorFileError, match=r"v\.npy: holds objects, pickled.*numpy\.save\("):
        open_vectors(str(tmp_path / "v.npy"), None, words=words)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize(
    "lists", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2), pa.list_view]
)
@pytest.mark.parametrize(
    "texts", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]
)
@pytest.mark.parametrize("in_dictionary", [False, True])
def test_parquet_of_any_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, lists: Any, texts: Any,
    in_dictionary: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 16)
    words = ["a", None, "c"]
    rows = pa.array([row.astype(kind.to_pandas_dtype()) for row in VECTORS], lists(kind))
    tokens = pa.array(words, texts)
    if in_dictionary and "view" not in str(texts):  # of which Parquet holds no dictionary
        tokens = tokens.dictionary_encode()
    table = pa.table({"n": [1, 2, 3], "token": tokens, "embedding": rows})
    with pq.ParquetWriter(tmp_path / "v.parquet", table.schema) as file:
        file.write_table(table[:0])  # an empty row group
        file.write_table(table, row_group_size=2)
    found, vectors = found_in(str(tmp_path / "v.parquet"))
    assert found == ["a", "", "c"]
    np.testing.assert_array_equal(vectors, VECTORS)


@pytest.mark.filterwarnings("error:overflow")
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": ["x"], "b": ["y"], "vector": [[1.0]]}, "expected a column 'word', or one column of"),
        ({"word": ["x"]}, r"expected a column 'vector'.*it has word \(string\)"),
        ({"word": ["x", "y"], "vector": [[1.0, 2.0], [1.0]]}, "row 2: expected 2 numbers, found 1"),
        ({"word": ["x", "y"], "vector": [[1.0, 2.0], None]}, "row 2: expected 2 numbers, found 0"),
        ({"word": ["x"], "vector": [[1.0, None]]}, "row 1: expected 2 numbers, or one"),
        ({"word": ["x"], "vector": [[1.0, np.inf]]}, r"entry 1 \('x'\): a value is not finite"),
        ({"word": ["x"], "vector": [[1.0, 1e300]]}, r"entry 1 \('x'\): a value is not finite"),
        ({"word": ["x"], "vector": [[1, 2]]}, r"one column of lists of floating-point numbers; it"),
        ({"word": ["x"], "vector": [pa.scalar([], pa.list_(pa.float32()))]}, "holds no vectors"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(VectorFileError, match=rf"v\.parquet.*{said}"):
        found_in(str(tmp_path / "v.parquet"))
    content = (tmp_path / "v.parquet").read_bytes()
    with pytest.raises(VectorFileError, match="Parquet within a compressed file"):
        open_vectors(saved(tmp_path, "v.gz", gzip.compress(content)), None)
    with pytest.raises(VectorFileError, match="cannot read"):
        found_in(saved(tmp_path, "cut.parquet", content[: len(content) // 2]))


ODD_WORDS = ["a\tb", "a\t5", "\x1f", "\x0b", "\x0b1", "\u2028", "x\r", "東京", "c"]


@pytest.mark.parametrize("format", ["word2vec", "word2vec-bin", "glove", "parquet"])
@pytest.mark.parametrize("turn", range(len(ODD_WORDS)))
def test_what_is_written_comes_back_whatever_its_words(
    tmp_path: Path, format: Any, turn: int
) -> None:
    words = ODD_WORDS[turn:] + ODD_WORDS[:turn]
    vectors = np.random.default_rng(1).standard_normal((len(words), 3)).astype(np.float32)
    block = Block(words, np.ones(len(words), np.int64), vectors)
    uri = str(tmp_path / "v")
    write_vectors(uri, format, [block], num_words=len(words), width=3)
    assert detect_format(uri) == format
    found, rows = found_in(uri)
    assert found == words
    np.testing.assert_array_equal(rows, vectors)


def test_a_word_with_the_end_of_a_line_goes_to_parquet_alone(tmp_path: Path) -> None:
    block = Block(["a\nb"], np.ones(1, np.int64), VECTORS[:1])
    for format in ("word2vec", "word2vec-bin", "glove", "parquet"):
        uri = str(tmp_path / format)
        if format == "parquet":
            write_vectors(uri, format, [block], num_words=1, width=2)
            assert found_in(uri)[0] == ["a\nb"]
        else:
            with pytest.raises(UserError, match=r"the word 'a\\\\nb' has a line's end .* Parquet"):
                write_vectors(uri, format, [block], num_words=1, width=2)  # type: ignore[arg-type]


def test_a_word_with_a_blank_is_not_written_where_a_blank_ends_words(tmp_path: Path) -> None:
    block = Block(["a b"], np.ones(1, np.int64), VECTORS[:1])
    for format in ("word2vec", "glove", "parquet"):
        write_vectors(str(tmp_path / format), format, [block], num_words=1, width=2)  # type: ignore[arg-type]
        assert found_in(str(tmp_path / format))[0] == ["a b"]
    with pytest.raises(UserError, match=r"the word 'a b' has a blank .* text and Parquet can"):
        write_vectors(str(tmp_path / "bin"), "word2vec-bin", [block], num_words=1, width=2)


@pytest.mark.parametrize("rows_at_once", [1, 100])
def test_the_projectors_files_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    import torch

    monkeypatch.setattr(number_lines, "BLOCK_BYTES", rows_at_once * 48)
    odd = [
        "\t",
        r"\t",
        "\\\t",
        r"\\t",
        "a\n",
        "\r",
        "\x1f\x85",
        r"\x1f",
        "\u2028",
        "東京",
        "\\",
        r"\o/",
    ]
    rows = np.random.default_rng(1).standard_normal((len(odd), 3)).astype(np.float32)
    files = projector_files(odd, np.arange(len(odd)), torch.from_numpy(rows), "t")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert len(files["metadata.tsv"].splitlines()) == 1 + len(odd)  # whatever parts lines
    words = str(tmp_path / "metadata.tsv")
    found, vectors = found_in(str(tmp_path / "vectors.tsv"), words=words)
    assert found == odd
    np.testing.assert_array_equal(vectors, rows)
    # What others have written is as it stands.
    saved(tmp_path, "vectors.tsv", b"1 2\n3 4\n5 6\n")
    for listed in (b"word\tn\n\\times\t1\n\\\\\t2\nb\t3\n", b"\\times\n\\\\\nb\n"):
        words = saved(tmp_path, "theirs", listed)
        assert found_in(str(tmp_path / "vectors.tsv"), words=words)[0] == [r"\times", r"\\", "b"]
    few, many = saved(tmp_path, "few", b"a\n"), saved(tmp_path, "many", b"a\nb\nc\nd\ne\n")
    for listed, said in ((few, "few: 1 words, but"), (many, "many: more words than the 3 rows")):
        with pytest.raises(VectorFileError, match=said):
            found_in(str(tmp_path / "vectors.tsv"), words=listed)
    for content, said in (
        (b"1 2\n1\n", "row 2: 1 numbers, the width is 2"), (b"1 2\n1 x\n", "rows (1|2) to 2"),
        (b"1 2\n1 x\n", "'x'"),
    ):  # fmt: skip
        with pytest.raises(VectorFileError, match=said):
            found_in(saved(tmp_path, "v.tsv", content), words=few)
    with pytest.raises(VectorFileError, match=r"x\.tsv: expected lines of numbers, found 'a 1'"):
        open_vectors(saved(tmp_path, "x.tsv", b"a 1\n"), "tsv", words=few)
    with pytest.raises(VectorFileError, match="needs the list of its words"):
        open_vectors(str(tmp_path / "vectors.tsv"), "tsv")


def test_words_with_a_prefix_alone_are_of_interest() -> None:
    tokenizer = Tokenizer.from_words(
        [SPACE + "house", SPACE + "1990"], lowercase=False, split_punctuation=False
    )
    keys = VocabularyKeys(tokenizer, ["hashes"], prefix="/c/en/")
    found = keys.match(["/c/fr/house", "house", "/c/en/house", "/c/en/####", "/c/en/", ""])
    assert found.places.tolist() == [2, 3]
    assert [tokenizer.token(i) for i in found.ids] == [SPACE + "house", SPACE + "1990"]


def configured(width: int, **file: Any) -> Any:
    return config_from_dict(
        {"run": {"uri": "unused"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
         "embedding": {"width": width, "tables": {"source": {"pretrained": file}}}}
    )  # fmt: skip


def test_vectors_are_looked_at_before_the_work(tmp_path: Path) -> None:
    uri = saved(tmp_path, "v.txt", PLAIN)
    check_vectors(configured(2, uri=uri))
    check_vectors(configured(4, uri=uri))
    check_vectors(configured(4, uri=uri, project="random"))
    np.save(tmp_path / "v.npy", VECTORS)
    for settings, said in [
        ({"uri": f"{tmp_path}/none"}, "none: no such file"),
        ({"uri": uri, "missing": "subword"}, "needs a binary fastText model"),
        ({"uri": uri, "project": "pca"}, "cannot widen vectors, from 2 to 4; leave `project` out"),
        ({"uri": f"{tmp_path}/v.npy", "words": f"{tmp_path}/gone"}, "gone: no such file"),
    ]:
        with pytest.raises(UserError, match=said):
            check_vectors(configured(4, **settings))
    with pytest.raises(UserError, match=r"width 2, the table has 1; set embedding\.width=2, or"):
        check_vectors(configured(1, uri=uri))


def test_the_width_is_that_of_most_lines(tmp_path: Path) -> None:
    lines = b"a 1 2\nb 1 3 4\n1 2\n" + PLAIN
    file = open_vectors(saved(tmp_path, "v", lines), "glove")
    assert isinstance(file, text.TextVectors)
    assert file.width == 2
