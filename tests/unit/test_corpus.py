from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dist_embed.data.corpus import ParallelText, read_pairs
from dist_embed.data.text.lines import read_lines
from dist_embed.data.text.rows import CorpusError, Pair
from dist_embed.errors import StorageError
from dist_embed.storage import uri as storage

PAIRS = [("a cat", "eine katze"), ("", "leer"), (" two  spaces ", "grün — ß"), ("end", "ende")]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def put(path: Path, data: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def lines_of(pairs: list[Pair], place: int, end: str = "\n") -> bytes:
    return "".join(f"{pair[place]}{end}" for pair in pairs).encode()


def refused(corpus: ParallelText) -> str:
    with pytest.raises(CorpusError) as caught:
        list(read_pairs(corpus))
    return str(caught.value)


def one_file(path: str) -> ParallelText:
    return ParallelText((path,), (path,))


@pytest.mark.parametrize("ending", COMPRESS)
def test_text_is_read_compressed_or_not(tmp_path: Path, ending: str) -> None:
    source = put(tmp_path / f"s.txt{ending}", COMPRESS[ending](lines_of(PAIRS, 0)))
    target = put(tmp_path / f"t.txt{ending}", COMPRESS[ending](lines_of(PAIRS, 1)))
    assert list(read_pairs(ParallelText((source,), (target,)))) == PAIRS


def zipped(**files: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("folder/", "")
        for name, text in files.items():
            archive.writestr(f"folder/{name}", text)
    return packed.getvalue()


def test_a_zip_is_read_if_it_holds_one_file(tmp_path: Path) -> None:
    assert list(read_lines(put(tmp_path / "one.zip", zipped(a="x\ny\n")))) == ["x", "y"]
    for files in ({}, {"a": "x\n", "b": "y\n"}):
        path = put(tmp_path / "other.zip", zipped(**files))
        with pytest.raises(CorpusError, match=rf"{len(files)} files in it"):
            list(read_lines(path))
    with pytest.raises(CorpusError, match=r"broken\.zip"):
        list(read_lines(put(tmp_path / "broken.zip", b"no zip")))


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_several_compressed_members_are_one_text(tmp_path: Path, ending: str) -> None:
    # What `cat a.gz b.gz` and parallel compressors write.
    path = put(tmp_path / f"s{ending}", COMPRESS[ending](b"a\nb\n") + COMPRESS[ending](b"c\n"))
    assert list(read_lines(path)) == ["a", "b", "c"]


def test_sides_may_be_compressed_differently(tmp_path: Path) -> None:
    source = put(tmp_path / "s.txt", lines_of(PAIRS, 0))
    target = put(tmp_path / "t.gz", gzip.compress(lines_of(PAIRS, 1)))
    assert list(read_pairs(ParallelText((source,), (target,)))) == PAIRS


def test_windows_line_ends_and_a_missing_last_one_make_no_difference(tmp_path: Path) -> None:
    source = put(tmp_path / "s", lines_of(PAIRS, 0, "\r\n"))
    target = put(tmp_path / "t", lines_of(PAIRS, 1).removesuffix(b"\n"))
    assert list(read_pairs(ParallelText((source,), (target,)))) == PAIRS


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028line\x0cstill\x85yes\u2029"
    assert list(read_lines(put(tmp_path / "s", text + "\nnext\n"))) == [text, "next"]


def test_files_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("2", "1", "3"):
        put(tmp_path / f"part-{name}.en", f"en {name}\n")
        put(tmp_path / f"part-{name}.de", f"de {name}\n")
    expected = [(f"en {i}", f"de {i}") for i in (1, 2, 3)]
    globs = ParallelText((str(tmp_path / "*.en"),), (str(tmp_path / "part-?.de"),))
    assert list(read_pairs(globs)) == expected
    listed = ParallelText(
        tuple(str(tmp_path / f"part-{i}.en") for i in (3, 1)),
        tuple(str(tmp_path / f"part-{i}.de") for i in (3, 1)),
    )
    assert list(read_pairs(listed)) == [expected[2], expected[0]]


def test_text_is_read_from_urls() -> None:
    storage.write_bytes("memory://test-corpus/s-1.gz", gzip.compress(lines_of(PAIRS, 0)))
    storage.write_bytes("memory://test-corpus/t-1.txt", lines_of(PAIRS, 1))
    corpus = ParallelText(("memory://test-corpus/s-*",), ("memory://test-corpus/t-1.txt",))
    assert list(read_pairs(corpus)) == PAIRS


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_tsv_columns_are_found_by_name(tmp_path: Path, ending: str) -> None:
    text = b"id\tde\ten\n" + b"".join(f"1\t{t}\t{s}\n".encode() for s, t in PAIRS)
    path = put(tmp_path / f"x.tsv{ending}", COMPRESS[ending](text))
    assert list(read_pairs(ParallelText(pairs=(path,), columns=("en", "de")))) == PAIRS


@pytest.mark.parametrize(
    "sentence",
    ['a "quoted word', '"all quoted"', "it's", "a\rb", "a\x00b", "x" * 200_000, "back\\slash"],
    ids=lambda sentence: repr(sentence[:12]),
)
def test_tsv_keeps_every_character_but_tabs(tmp_path: Path, sentence: str) -> None:
    path = put(tmp_path / "x.tsv", f"source\ttarget\n{sentence}\tt\nnext\tn\n")
    assert list(read_pairs(ParallelText(pairs=(path,)))) == [(sentence, "t"), ("next", "n")]


def test_a_short_tsv_row_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", "source\ttarget\na\tb\nlonely\n")
    message = refused(ParallelText(pairs=(path,)))
    assert f"{path}, line 3: 1 columns, the header has 2" in message


def test_a_long_tsv_row_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", "source\ttarget\na\tb\nI like\ttea .\tIch mag Tee .\n")
    message = refused(ParallelText(pairs=(path,)))
    assert f"{path}, line 3: 3 columns, the header has 2" in message


@pytest.mark.parametrize("name", ["x.tsv", "x"])
def test_files_of_pairs_without_tabs_are_refused(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, "source,target\na,b\n")
    message = refused(ParallelText(pairs=(path,)))
    assert f"{path}, line 1: expected names of columns with tabs" in message
    assert "'source,target'" in message


def test_parquet_columns_are_found_by_name(tmp_path: Path) -> None:
    source, target = zip(*PAIRS, strict=True)
    for number in (1, 2):
        table = pa.table({"n": [1] * len(PAIRS), "de": target, "en": source})
        pq.write_table(table, tmp_path / f"x-{number}.parquet", row_group_size=3)
    corpus = ParallelText(pairs=(str(tmp_path / "*.parquet"),), columns=("en", "de"))
    assert list(read_pairs(corpus)) == PAIRS * 2


def test_line_ends_in_parquet_cells_are_spaces(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"source": ["one\ntwo", "a\r\n\r\nb"], "target": ["x", "y\u2028z"]}),
        tmp_path / "x.parquet",
    )
    corpus = ParallelText(pairs=(str(tmp_path / "x.parquet"),))
    assert list(read_pairs(corpus)) == [("one two", "x"), ("a b", "y\u2028z")]


def test_parquet_nulls_are_empty_sides(tmp_path: Path) -> None:
    pq.write_table(pa.table({"source": ["a", None], "target": [None, "b"]}), tmp_path / "x.parquet")
    corpus = ParallelText(pairs=(str(tmp_path / "x.parquet"),))
    assert list(read_pairs(corpus)) == [("a", ""), ("", "b")]


def _of_type(texts: tuple[str, ...], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(texts).cast(kind.value_type).dictionary_encode().cast(kind)
    return pa.array(texts).cast(kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
        pa.binary_view(), pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.binary()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.parquet", "X.Parquet"])
def test_text_of_every_type_of_parquet_is_read(
    tmp_path: Path, kind: pa.DataType, name: str
) -> None:
    source, target = (_of_type(side, kind) for side in zip(*PAIRS, strict=True))
    pq.write_table(pa.table({"source": source, "target": target}), tmp_path / name)
    assert list(read_pairs(ParallelText(pairs=(str(tmp_path / name),)))) == PAIRS


def test_only_the_first_pairs_are_read_where_a_limit_is_set(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", "source\ttarget\n" + "a\tb\n" * 5)
    for limit, count in ((0, 0), (1, 1), (4, 4), (9, 5), (None, 5)):
        assert len(list(read_pairs(ParallelText(pairs=(path,), limit=limit)))) == count


def test_a_file_of_pairs_without_a_header_has_no_columns(tmp_path: Path) -> None:
    path = put(tmp_path / "x.tsv", "")
    assert f"{path}: is empty" in refused(ParallelText(pairs=(path,)))


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [None, None]], ids=str)
def test_a_parquet_column_that_is_no_text_is_named(tmp_path: Path, values: list[object]) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"source": values, "target": ["a", "b"]}), path)
    message = refused(ParallelText(pairs=(str(path),)))
    assert str(path) in message
    assert "source" in message


@pytest.mark.parametrize("name", ["x.tsv", "x.parquet"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, name: str) -> None:
    if name == "x.tsv":
        put(tmp_path / name, "en\tde\na\tb\n")
    else:
        pq.write_table(pa.table({"en": ["a"], "de": ["b"]}), tmp_path / name)
    message = refused(ParallelText(pairs=(str(tmp_path / name),), columns=("en", "fr")))
    assert f"{tmp_path / name}: no column 'fr'; there are en, de" in message


def test_different_lengths_tell_both_counts(tmp_path: Path) -> None:
    long, short = put(tmp_path / "long", "x\n" * 7), put(tmp_path / "short", "y\n" * 4)
    for corpus in (ParallelText((long,), (short,)), ParallelText((short,), (long,))):
        message = refused(corpus)
        assert f"{long} has 7 lines" in message or f"{long} has 7" in message
        assert f"{short} has 4" in message


def test_an_empty_side_has_no_lines(tmp_path: Path) -> None:
    empty, one = put(tmp_path / "empty", ""), put(tmp_path / "one", "y\n")
    assert "has 0 lines" in refused(ParallelText((empty,), (one,)))
    assert list(read_pairs(ParallelText((empty,), (empty,)))) == []


def test_different_numbers_of_files_tell_both(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a", "x\n"), put(tmp_path / "b", "x\n")
    message = refused(ParallelText((a, b), (a,)))
    assert "2 source files but 1 target files" in message
    assert b in message


def test_invalid_utf8_names_file_line_and_column(tmp_path: Path) -> None:
    good = put(tmp_path / "good", "a\nb\nc\n")
    bad = put(tmp_path / "bad", b"a\nb\xc3\xa9\xff\nc\n")
    message = refused(ParallelText((good,), (bad,)))
    assert f"{bad}, line 2: not valid UTF-8 (byte 0xff at column 4)" in message


@pytest.mark.parametrize("name", ["bad.tsv", "bad.tsv.gz"])
def test_invalid_utf8_in_tsv_names_the_line(tmp_path: Path, name: str) -> None:
    data = b"source\ttarget\na\tb\nc\t\xff\n"
    path = put(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert f"{path}, line 3: not valid UTF-8" in refused(ParallelText(pairs=(path,)))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert list(read_lines(put(tmp_path / "s", b"\xef\xbb\xbfhello\nyou\n"))) == ["hello", "you"]


def test_missing_files_and_patterns_are_named(tmp_path: Path) -> None:
    there = put(tmp_path / "a", "x\n")
    missing = str(tmp_path / "b")
    assert f"cannot read {missing}: no such file" in refused(ParallelText((there,), (missing,)))
    pattern = str(tmp_path / "*.nope")
    assert f"no file matches {pattern!r}" in refused(ParallelText((there,), (pattern,)))
    for name in ("x.tsv", "x.parquet"):
        assert "no such file" in refused(ParallelText(pairs=(str(tmp_path / name),)))
    assert str(tmp_path) in refused(one_file(str(tmp_path)))


def test_names_with_glob_signs_can_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "lr=[0.1]" / "a.txt", "x\n")
    assert list(read_pairs(one_file(path))) == [("x", "x")]


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match="nope"):
        list(read_pairs(one_file("nope://x/y")))


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_file_is_an_error(tmp_path: Path, ending: str) -> None:
    data = COMPRESS[ending]("".join(f"{i} {i * 7919 % 1000}\n" for i in range(20_000)).encode())
    path = put(tmp_path / f"x{ending}", data[: len(data) // 2])
    with pytest.raises(CorpusError, match="cannot read"):
        list(read_lines(path))
    list(read_lines(put(tmp_path / f"y{ending}", data)))  # whole, it can be read


@pytest.mark.parametrize("ending", [".gz", ".zst", ".bz2", ".xz", ".zip", ".parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"x{ending}", b"plain text, not compressed at all\n" * 3)
    corpus = ParallelText(pairs=(path,)) if ending == ".parquet" else one_file(path)
    message = refused(corpus)
    assert f"cannot read {path}: " in message
    assert not message.endswith(": ")


def test_a_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"some line\n" * 1000))
    data[-6] ^= 0xFF  # in the checksum
    assert "cannot read" in refused(one_file(put(tmp_path / "x.gz", bytes(data))))


def test_a_truncated_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"source": ["a"] * 9, "target": ["b"] * 9}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert f"cannot read {path}" in refused(ParallelText(pairs=(str(path),)))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_reading_is_a_stream(tmp_path: Path, ending: str) -> None:
    # The damage lies megabytes behind the first line: who reads it all at once meets it.
    data = COMPRESS[ending](b"".join(b"line %d\n" % i for i in range(1_000_000)) + b"\xff\n")
    path = put(tmp_path / f"big{ending}", data)
    lines = read_lines(path)
    assert [next(lines), next(lines)] == ["line 0", "line 1"]
    pairs = read_pairs(one_file(path))
    assert next(pairs) == ("line 0", "line 0")


def test_nothing_is_opened_before_the_first_pair_is_asked_for() -> None:
    pairs = read_pairs(ParallelText(("/none",), ("/none",)))
    with pytest.raises(CorpusError, match="/none"):
        next(pairs)
