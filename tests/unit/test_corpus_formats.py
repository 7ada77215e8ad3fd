"""Corpora as their publishers and other tools write them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_embed.data.corpus import ParallelText, Skipped, read_pairs
from dist_embed.data.inputs import record_inputs
from dist_embed.data.text.lines import lines_of
from dist_embed.data.text.members import archive_of
from dist_embed.data.text.rows import CorpusError, Pair
from dist_embed.errors import UserError
from dist_embed.storage import bombs
from dist_embed.vectors.file import VectorFileError
from dist_embed.vectors.formats import open_vectors

NUMBERED = (1, 2)
LANGUAGES = ("en", "de")


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


Put = Callable[[str, str | bytes], str]


def pairs(path: str, columns: Any = ("source", "target"), **more: Any) -> list[Pair]:
    return list(read_pairs(ParallelText(pairs=(path,), columns=columns, **more)))


def refused(path: str, columns: Any = ("source", "target"), **more: Any) -> str:
    with pytest.raises(CorpusError) as caught:
        pairs(path, columns, **more)
    message = str(caught.value)
    assert path in message
    assert "\n" not in message
    return message


def skipping(path: str, columns: Any = ("source", "target"), **more: Any) -> tuple[Any, ...]:
    """The pairs, how many rows were passed over, and what is wrong with the first."""
    skipped = Skipped()
    corpus = ParallelText(pairs=(path,), columns=columns, skip_wrong=True, **more)
    return list(read_pairs(corpus, skipped)), skipped.count, skipped.first


# Tables by number.

DOWNLOADED: dict[str, tuple[str, tuple[int, int], list[Pair]]] = {
    # Each with its columns as its publisher gives them; texts are made up.
    "europarl-v10.de-en.tsv": (
        "Ein Satz.\tA sentence.\t\t1\tEN\nZwei .\tTwo .\n", (2, 1),
        [("A sentence.", "Ein Satz."), ("Two .", "Zwei .")],
    ),
    "news-commentary-v18.de-en.tsv": (
        "Titel\tTitle\n\t\nMehr\tMore\n\nEnde\tEnd\n\n\n\tx\n", (2, 1),
        [("Title", "Titel"), ("", ""), ("More", "Mehr"), ("", ""), ("End", "Ende"),
         ("", ""), ("", ""), ("x", "")],
    ),
    "tatoeba.tsv": (
        '1\t"Go!"\t77\tGeh!\n2\tI go.\t78\t"Ich gehe."\n', (2, 4),
        [('"Go!"', "Geh!"), ("I go.", '"Ich gehe."')],
    ),
    "paracrawl.en-de.txt": (
        "http://a\thttp://b\tHello\tHallo\t0.7\n", (3, 4), [("Hello", "Hallo")],
    ),
    "WikiMatrix.de-en.tsv": ("1.2\tHallo\tHello\tde\ten\n", (3, 2), [("Hello", "Hallo")]),
}  # fmt: skip


@pytest.mark.parametrize("name", DOWNLOADED)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_tables_without_a_header_are_read_by_number(put: Put, name: str, ending: str) -> None:
    text, columns, expected = DOWNLOADED[name]
    content = gzip.compress(text.encode()) if ending else text
    assert pairs(put(name + ending, content), columns) == expected


def test_the_ending_of_a_chained_url_tells_the_form(put: Put) -> None:
    path = put("train.CSV", "source,target\na,b\n")
    assert pairs(f"simplecache::file://{path}") == [("a", "b")]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_cannot_be_read_is_one_line(put: Put, kind: str) -> None:
    damaged = put("damaged", b"PK\x03\x04" + b"x" * 50)
    with pytest.raises(UserError, match=rf"^cannot (read|open) .*{kind}://a\.tsv::.*$"):
        pairs(f"{kind}://a.tsv::{damaged}")
    assert "no file matches" in refused(f"{kind}://a.tsv::{damaged}.gone")


def test_a_column_behind_the_last_is_named(put: Put) -> None:
    path = put("x.tsv", "a\tb\tc\nd\te\n")
    assert f"{path}, line 2: 2 columns, column 3 is wanted" in refused(path, (1, 3))


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("columns", [("source", "target"), (1, 2)], ids=str)
@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_a_blank_end_is_no_row(put: Put, end: str, columns: Any, name: str) -> None:
    sign = "," if name.endswith("csv") else "\t"
    path = put(name, f"source{sign}target\na{sign}b{end}")
    assert pairs(path, columns)[-1] == ("a", "b")
    assert len(pairs(path, columns)) == (1 if columns[0] == "source" else 2)


def test_a_blank_line_within_named_columns_is_a_wrong_row(put: Put) -> None:
    path = put("x.tsv", "source\ttarget\n\na\tb\n")
    assert f"{path}, line 2: 1 columns, the header has 2" in refused(path)


def test_a_column_that_is_there_twice_is_refused(put: Put, tmp_path: Path) -> None:
    assert "2 columns 'source'" in refused(put("x.tsv", "source\tsource\ttarget\na\tb\tc\n"))
    table = pa.table([pa.array(["a"])] * 3, names=["source", "source", "target"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert "2 columns 'source'" in refused(str(tmp_path / "x.parquet"))


# Quote signs.

QUOTED = [
    ('He said "yes" .', 'Er sagte "ja" .'), ('"Stop !"', '"Halt !"'), ("plain", "einfach"),
    ('5" pipe', 'a\ttab, "and', ), ("two\nlines", "x"),
]  # fmt: skip
UNQUOTED = [(s.replace("\n", " "), t) for s, t in QUOTED]


def written(rows: list[Any], delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("with_header", [True, False])
@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_quoted_tables_are_read_as_they_were_written(
    put: Put, quoting: Any, with_header: bool, name: str
) -> None:
    rows = [("source", "target")] * with_header + QUOTED
    path = put(name, written(rows, "," if name.endswith("csv") else "\t", quoting))
    columns = ("source", "target") if with_header else (1, 2)
    assert pairs(path, columns, quoting="csv") == UNQUOTED
    if name.endswith("csv"):
        assert pairs(path, columns) == UNQUOTED
    else:
        assert "set quoting to csv" in refused(path, columns)
        # Not even where wrong rows may be passed over: those with quote signs would all go.
        assert "set quoting to csv" in refused(path, columns, skip_wrong=True)


@pytest.mark.parametrize(
    "cell", ['"all quoted"', '"a" and "b"', 'a ""b"" c', '""b""', '"', '""', "5\" pipe", '"open'],
)  # fmt: skip
def test_quote_signs_of_plain_text_are_kept(put: Put, cell: str) -> None:
    path = put("x.tsv", f"source\ttarget\n{cell}\t{cell}\n")
    assert pairs(path) == pairs(path, quoting="none") == [(cell, cell)]


def test_a_first_row_that_is_quoted_throughout_is_refused_where_it_is_text(put: Put) -> None:
    path = put("x.tsv", '"a"\t"b"\n"c"\t"d"\n')
    assert f"{path}, line 1: looks quoted" in refused(path, NUMBERED)
    assert pairs(path, NUMBERED, quoting="csv") == [("a", "b"), ("c", "d")]
    assert pairs(path, NUMBERED, quoting="none")[0] == ('"a"', '"b"')


@pytest.mark.parametrize(
    "text", ['"a\tb"\teine Katze\n', '"a\tb"\teine Katze\nx\ty\n', 'x\ty\n"a\tb"\teine Katze\n',
             'x\ty\n"a\nb"\teine Katze\n'],
)  # fmt: skip
def test_quoted_cells_with_tabs_or_line_ends_are_not_cut(put: Put, text: str) -> None:
    path = put("x.tsv", text)
    assert "set quoting to csv" in refused(path, NUMBERED)
    assert "set quoting to csv" in refused(path, NUMBERED, skip_wrong=True)
    assert ("a b", "eine Katze") in [
        (source.replace("\t", " "), target)
        for source, target in pairs(path, NUMBERED, quoting="csv")
    ]


def test_quote_signs_are_text_where_that_is_said(put: Put) -> None:
    cell = '"He said ""yes"" ."'
    assert "line 2: looks quoted" in refused(put("x.tsv", f"source\ttarget\n{cell}\tx\n"))
    assert pairs(put("x.tsv", f"source\ttarget\n{cell}\tx\n"), quoting="none") == [(cell, "x")]
    assert pairs(put("x.csv", f"source,target\n{cell},x\n"), quoting="none") == [(cell, "x")]


def test_a_quote_without_an_end_is_told_by_where_it_begins(put: Put) -> None:
    path = put("x.csv", 'source,target\na,b\n"c,d\n' + "more,text\n" * 9)
    assert f"{path}, line 3: unexpected end of data" in refused(path)
    message = refused(path, max_line_bytes=20)
    assert f"{path}, line 3: the row that begins here is longer than max_line_bytes=20" in message
    for limit in (20, 2**20):
        found, count, _ = skipping(path, max_line_bytes=limit)
        assert (found, count) == ([("a", "b"), *[("more", "text")] * 9], 1)


@pytest.mark.parametrize("stray", ['"a,b', '"a\n\n"b"c,', '"a,b\n\xff'])
@pytest.mark.parametrize("later", ['x,"y', '"quoted ""once""",y', 'x,y"'])
def test_a_stray_quote_sign_takes_no_row_but_its_own(put: Put, stray: str, later: str) -> None:
    rows = [f"a{i},b{i}" for i in range(100)]
    lines = ["source,target", *rows, stray, *rows, later, *rows]
    path = put("x.csv", ("\n".join(lines) + "\n").encode("latin-1"))
    found, count, first = skipping(path)
    expected = [tuple(row.split(",")) for row in rows]
    assert found[:200] == expected * 2
    assert found[-100:] == expected
    assert count <= 4
    assert f"{path}, line 102: " in first


def test_quote_signs_that_never_end_do_not_read_a_file_for_ever(put: Put) -> None:
    # Each line's last cell begins, for who reads on from there, another one without an end.
    path = put("x.csv", "source,target\n" + 'a",",c\n' * 3000)
    message = refused(path, skip_wrong=True, max_line_bytes=1000)
    assert "too many quote signs until here have no end; set quoting to" in message


def test_a_long_cell_of_csv_is_read(put: Put) -> None:
    assert pairs(put("x.csv", f"source,target\n{'x' * 300_000},t\n")) == [("x" * 300_000, "t")]


# JSON lines.


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson.gz", "x.json"])
def test_json_lines_are_read_by_key(put: Put, name: str) -> None:
    rows = [
        {"translation": {"en": "a\nb", "de": "ü"}}, {"translation": {"en": None, "de": "x"}},
        {"translation.en": "flat", "translation": {"de": "y"}}, {"translation": None},
    ]  # fmt: skip
    content = ("\n".join(map(json.dumps, rows)) + "\n\n").encode()
    path = put(name, gzip.compress(content) if name.endswith("gz") else content)
    found = pairs(path, ("translation.en", "translation.de"))
    assert found == [("a b", "ü"), ("", "x"), ("flat", "y"), ("", "")]


WRONG_JSON = [
    '{"source": "a"}', '{"source": 1, "target": "b"}', "[]", "{",
    '{"source": "\\ud800", "target": ""}',
    "[" * 100_000, '{"source": ' + "1" * 5000 + "}", '{"source": {"en": "a"}, "target": "b"}',
    '{"source": [1], "target": "b"}',
]  # fmt: skip


@pytest.mark.parametrize("row", WRONG_JSON, ids=lambda row: row[:20])
def test_wrong_json_is_one_line(put: Put, row: str) -> None:
    good = '{"source": "a", "target": "b"}'
    path = put("x.jsonl", f"{good}\n{row}\n{good}\n")
    assert f"{path}, line 2: " in refused(path)
    found, count, first = skipping(path)
    assert (found, count) == ([("a", "b")] * 2, 1)
    assert f"{path}, line 2: " in first


def test_wrong_json_is_told_by_its_line_alone(put: Put) -> None:
    path = put("x.json", '{"source": "a", "target": "b"}\n{\n')
    told = "column 2; an object a line is expected"
    assert re.fullmatch(rf"{path}, line 2: Expecting property .*, {told}", refused(path))


def test_a_list_of_objects_is_told_how_it_becomes_lines(put: Put) -> None:
    row = '{"source": "a", "target": "b"}'
    for content in (f"[{row}, {row}]\n", f"[\n{row}\n]\n", f"[{', '.join(9 * [row])}]\n"):
        message = refused(put("x.json", content), max_line_bytes=200)
        assert "an object a line is expected, as jq -c '.[]' makes of a list" in message
    path = put("x.json", row)
    assert refused(path, max_line_bytes=9) == f"{path}, line 1: longer than max_line_bytes=9"


def test_numbers_beside_texts_of_json_may_have_any_length(put: Put) -> None:
    rows = [f'{{"source": "a", "target": "b", "id": {"9" * 5000}}}', '{"source": 12, "target": ""}']
    found, count, first = skipping(put("x.jsonl", "\n".join(rows)))
    assert (found, count) == ([("a", "b")], 1)
    assert "line 2: '12' is not text" in first
    path = put("x.jsonl", '{"source": "\\ud83d", "target": "b"}\n')
    assert r"line 1: half a character, '\ud83d', as JSON can write" in refused(path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.tmx", "x.parquet"])
def test_columns_by_number_are_of_tables_alone(put: Put, name: str) -> None:
    assert "columns have names here, 1 and 2 are none" in refused(put(name, b""), NUMBERED)


# Parquet.

HUGGING_FACE = [{"en": "a", "de": "b", "fr": "c"}, {"en": None, "de": "d", "fr": "e"}, None]
KINDS = {
    "struct": pa.struct([(code, pa.string()) for code in ("en", "de", "fr")]),
    "map": pa.map_(pa.string(), pa.large_string()),
}


def hugging_face(path: Path, kind: str, rows: list[Any], **options: Any) -> str:
    if kind == "map":
        rows = [row and list(row.items()) for row in rows]
    pq.write_table(
        pa.table({"id": range(len(rows)), "translation": pa.array(rows, KINDS[kind])}),
        path, **options,
    )  # fmt: skip
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_translations_in_one_column_of_parquet_are_read(tmp_path: Path, kind: str) -> None:
    path = hugging_face(tmp_path / "x.parquet", kind, HUGGING_FACE)
    columns = ("translation.en", "translation.de")
    assert pairs(path, columns) == [("a", "b"), ("", "d"), ("", "")]
    if kind == "struct":
        message = refused(path, ("translation.en", "translation.es"))
        assert "no column 'translation.es'" in message
        assert "there are id, translation.en, translation.de, translation.fr" in message
        assert "holds struct" in refused(path, ("translation", "translation.de"))
    else:
        # A language that no row has is no empty text.
        message = refused(path, ("translation.en", "translation.es"))
        assert f"{path}, row 1: no 'translation.es'" in message or "row 1: no 'es'" in message
        assert "there are id, translation.KEY" in refused(path, ("en", "de"))


@pytest.mark.parametrize("kind", KINDS)
def test_translations_of_several_row_groups_are_read(tmp_path: Path, kind: str) -> None:
    # Where a dictionary becomes too large, what follows is stored plainly.
    rows = [{"en": f"{i % 50}", "de": "x" * 5000 + str(i)} for i in range(700)]
    path = hugging_face(tmp_path / "x.parquet", kind, rows, row_group_size=300)
    found = pairs(path, ("translation.en", "translation.de"))
    assert found == [(row["en"], row["de"]) for row in rows]


def test_a_column_with_a_point_in_its_name_comes_first(tmp_path: Path) -> None:
    nested = pa.array([{"en": "inner", "de": "x"}])
    table = pa.table({"translation": nested, "translation.en": ["outer"]})
    pq.write_table(table, tmp_path / "x.parquet")
    found = pairs(str(tmp_path / "x.parquet"), ("translation.en", "translation.de"))
    assert found == [("outer", "x")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()], ids=str)
def test_bytes_of_parquet_that_are_no_text_are_told_by_row(tmp_path: Path, kind: Any) -> None:
    source = pa.array([b"ok", b"\xff", b"ok"])
    if kind == pa.string():  # as a writer that does not look has it
        source = pa.Array.from_buffers(kind, 3, source.buffers())
    pq.write_table(pa.table({"source": source, "target": ["a", "b", "c"]}), tmp_path / "x.parquet")
    path = str(tmp_path / "x.parquet")
    assert f"{path}, row 2: " in refused(path)
    assert skipping(path)[:2] == ([("ok", "a"), ("ok", "c")], 1)


def told(path: str) -> str:
    """What is wrong with a file; nothing where it is read, as what has no checksums is."""
    try:
        pairs(path)
    except CorpusError as exc:
        return str(exc)
    return ""


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    texts = [f"a sentence of number {i}" for i in range(300)]
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"source": texts, "target": texts}), good, row_group_size=100)
    content = good.read_bytes()
    path = tmp_path / "x.parquet"
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x5A
        path.write_bytes(damaged)
        message = told(str(path))
        assert not message or str(path) in message
        assert "\n" not in message


# TMX.

TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><note>no text</note>
 <tuv xml:lang="EN-gb"><prop>no</prop><seg>A <bpt i="1">&lt;b&gt;</bpt>big<ept i="1"/> &amp;
 small <hi>cat</hi>.</seg></tuv>
 <tuv xml:lang="de"><seg>Eine Katze – süß.</seg></tuv>
 <tuv xml:lang="fr"><seg>Un chat.</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Only English</seg></tuv></tu>
<tu><tuv lang="en"><seg></seg></tuv><tuv lang="de_AT"><seg>leer</seg></tuv></tu>
</body></tmx>"""
OF_TMX = [("A big &  small cat.", "Eine Katze – süß."), ("", "leer")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", ["x.tmx", "x.tmx.gz"])
def test_units_of_tmx_are_read_by_language(put: Put, encoding: str, name: str) -> None:
    content = TMX.format(encoding=encoding).encode(encoding)
    path = put(name, gzip.compress(content) if name.endswith("gz") else content)
    assert pairs(path, LANGUAGES) == OF_TMX
    message = refused(path, ("en", "es"))
    assert "no unit has both 'en' and 'es'; languages there are EN-gb, de, fr" in message


def test_a_unit_with_two_texts_of_a_language_is_wrong(put: Put) -> None:
    unit = "".join(
        f"<tuv xml:lang='{code}'><seg>{code}</seg></tuv>" for code in ("en-GB", "en-US", "de")
    )
    path = put("x.tmx", f"<tmx>\n<tu>{unit}</tu></tmx>")
    assert f"{path}, line 2: 2 texts of 'en': en-GB, en-US, de" in refused(path, LANGUAGES)
    assert pairs(path, ("en-us", "de")) == [("en-US", "de")]


def laughs(levels: int = 12) -> str:
    declared = '<!ENTITY a0 "ha">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, levels)
    )
    return f"<!DOCTYPE tmx [{declared}]><tmx>&a{levels - 1};</tmx>"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (laughs(), "line 1: declares the entity 'a0'; none is followed"),
        (
            "<!DOCTYPE tmx [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><tmx>&f;</tmx>",
            "the entity 'f'",
        ),
        (TMX.format(encoding="utf-8").replace("&amp;", "&nbsp;"), "the entity 'nbsp' is declared"),
        ("<tmx><tu><tuv>", "no element found"),
        ("plain text", "syntax error"),
        ('<?xml version="1.0" encoding="klingon"?><tmx/>', "unknown encoding: klingon"),
        ("", "no element found"),
        ("<tmx></tmx>", "no unit has both"),
    ],
    ids=lambda text: text[:24],
)
def test_tmx_that_cannot_be_read_is_one_line(put: Put, content: str, told: str) -> None:
    assert told in refused(put("x.tmx", content), LANGUAGES)


# Archives.


def zipped(**files: str | bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", "")
        for name, text in files.items():
            archive.writestr(f"folder/{name}", text)
    return packed.getvalue()


def as_tar(text: bytes) -> bytes:
    packed, member = io.BytesIO(), tarfile.TarInfo("folder/x")
    member.size = len(text)
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


def test_a_zip_with_a_file_for_each_side_is_read(put: Put) -> None:
    files = {"README": "!", "Europarl.de-en.en": "a\nb\n", "Europarl.de-en.de": "x\ny\n"}
    path = put("de-en.txt.zip", zipped(**files))
    assert pairs(path, LANGUAGES) == [("a", "x"), ("b", "y")]
    message = refused(path)
    assert "0 files end in .source; there are folder/README, folder/Europarl.de-en.en" in message
    assert "0 files end in .1" in refused(path, NUMBERED)
    path = put("de-en.txt.zip", zipped(**(files | {"Europarl.de-en.de": "x\n"})))
    assert "Europarl.de-en.en has 2 lines" in refused(path, LANGUAGES)


def test_a_zip_with_one_file_is_read_as_that_file(put: Put) -> None:
    assert pairs(put("x.zip", zipped(**{"x.csv": 'source,target\n"a, b",c\n'}))) == [("a, b", "c")]
    assert pairs(put("x.zip", zipped(**{"x.txt": "a\tb\n"})), NUMBERED) == [("a", "b")]


def test_what_macos_puts_into_a_zip_is_passed_over(put: Put) -> None:
    files = {"x.en": "a\n", "x.de": "b\n", ".DS_Store": "x"}
    packed = io.BytesIO(zipped(**files))
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("__MACOSX/folder/._x.en", b"\0\5\x16\7")
        archive.writestr("__MACOSX/folder/._x.de", b"\0\5\x16\7")
    assert pairs(put("x.zip", packed.getvalue()), LANGUAGES) == [("a", "b")]


@pytest.mark.parametrize("name", ["x.parquet.gz", "x.parquet.zst", "x.zip"])
def test_parquet_that_is_compressed_once_more_is_unpacked(put: Put, name: str) -> None:
    buffer = io.BytesIO()
    texts = {"source": ["a", "b"], "target": ["c", "d"]}
    pq.write_table(pa.table(texts), buffer, row_group_size=1)
    content = buffer.getvalue()
    path = put(name, {
        "gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
        "zip": lambda data: zipped(**{"x.parquet": data}),
    }[name.rpartition(".")[2]](content))  # fmt: skip
    assert pairs(path) == [("a", "c"), ("b", "d")]
    refused(put("cut.parquet.gz", gzip.compress(content)[:-9]))


def test_a_compressed_file_of_a_zip_is_named(put: Put) -> None:
    path = put("x.zip", zipped(**{"x.csv.gz": gzip.compress(b"source,target\na,b\n")}))
    inside = f"zip://folder/x.csv.gz::{path}"
    assert f"give it as {inside}" in refused(path)
    assert pairs(inside) == [("a", "b")]
    path = put("x.zip", zipped(**{"x.csv": "source,target\na\n"}))
    assert f"{path}, folder/x.csv, line 2: 1 columns" in refused(path)


def test_a_zip_that_cannot_be_read_is_one_line(put: Put, tmp_path: Path) -> None:
    content = bytearray(zipped(**{"x.en": "a\n" * 99, "x.de": "b\n" * 99}))
    refused(put("x.zip", bytes(content[:-9])), LANGUAGES)
    content[content.index(b"x.en") + 5] ^= 0xFF
    refused(put("x.zip", bytes(content)), LANGUAGES)
    assert "no such file" in refused(str(tmp_path / "none.zip"))
    content = bytearray(zipped(**{"x.en": "a\n", "x.de": "b\n"}))
    for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(head, bytes(content)):
            content[found.start() + flags] |= 1
    assert "password required" in refused(put("x.zip", bytes(content)), LANGUAGES)


@pytest.mark.parametrize(
    ("places", "value", "said"), [((6, 8), 1, "password"), ((8, 10), 97, "compression method")]
)
def test_a_file_of_a_zip_that_cannot_be_opened_is_one_line(
    put: Put, places: tuple[int, int], value: int, said: str
) -> None:
    content = bytearray(zipped(**{"x.tsv": "a\tb\n"}))
    for head, place in zip((b"PK\x03\x04", b"PK\x01\x02"), places, strict=True):
        content[content.rindex(head) + place] = value
    path = put("x.zip", bytes(content))
    inside = f"zip://folder/x.tsv::{path}"
    assert said in refused(path, NUMBERED)
    assert said in refused(inside, NUMBERED)
    with pytest.raises(CorpusError, match=f"cannot read .*{said}"):
        list(read_pairs(ParallelText(source=(path,), target=(path,))))
    for uri in (path, inside):
        with pytest.raises(VectorFileError, match=f"cannot read .*{said}"):
            open_vectors(uri, None)


def test_an_error_of_a_reader_is_none_of_the_archive(put: Put) -> None:
    path = put("x.zip", zipped(**{"x.tsv": "a\tb\n"}))
    with pytest.raises(RecursionError), archive_of(path):
        raise RecursionError


# What is no text, and what cannot be read.


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\nb\n".encode("utf-16"), "is in UTF-16"),
        ("a cat\nb\n".encode("utf-16-le"), "is in UTF-16"),
        ("a cat\nb\n".encode("utf-16-be"), "is in UTF-16"),
        (b"a cat\ryes\r", "has lines that end with CR alone"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b" <!DOCTYPE html>\n<html>\n", "is a web page"),
        (b"\xef\xbb\xbf<!doctype html>\n<html>\n", "is a web page"),
        (b"<html>\r\n<head><title>404 Not Found</title></head>\r\n", "is a web page"),
        (b"/annex/objects/MD5E-s9--d8e8fca2dc0f896fd7cb4cb0031ba249.tsv\n", "git annex get"),
        (b'<refset setid="newstest2014">\n<seg id="1">A cat</seg>\n', "is XML or SGML"),
        (b"<?xml version='1.0' encoding='utf-8'?>\n<dataset id='x'>\n", "is XML or SGML"),
        (gzip.compress(b"a\n"), r"begins like a \.gz file: unpack it, let its name"),
        (bytes(99), "begins with zeros"), (b"PAR1" + bytes(9), r"begins like a \.parquet file"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(9), "is packed by 7-Zip"),
        (b"PK\3\4" + bytes(26) + b"[Content_Types].xml", "of an office program: save it as CSV"),
        (b"x\0" + bytes(255) + b"ustar\x0000" + bytes(247) + b"a\tb\n", "is a tar archive"),
        (b"x\0" + bytes(255) + b"ustar  \0" + bytes(247) + b"a\tb\n", "is a tar archive"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named_and_never_passed_over(
    put: Put, content: bytes, said: str, skip: bool
) -> None:
    """Both sides may have as many lines of it, and all would be pairs."""
    path = put("x", content)
    for corpus in (
        ParallelText(source=(path,), target=(path,), skip_wrong=skip),
        ParallelText(pairs=(path,), columns=NUMBERED, skip_wrong=skip),
    ):
        with pytest.raises(CorpusError, match=f"^{path}: .*{said}"):
            list(read_pairs(corpus))


@pytest.mark.parametrize(
    "text",
    [
        "PAR1 activation by thrombin", "a " * 128 + "mustard", "a " * 128 + "mustar d",
        "<html> is the root of a page",
    ],
)  # fmt: skip
def test_text_that_begins_much_like_something_else_is_text(put: Put, text: str) -> None:
    assert pairs(put("x", f"{text}\tb\n"), NUMBERED) == [(text, "b")]


def test_carriage_returns_within_lines_are_text(put: Put) -> None:
    path = put("x", b"a\rb\tc\nd\te\r")
    assert pairs(path, NUMBERED) == [("a\rb", "c"), ("d", "e")]
    for end in ("", "\r"):
        assert pairs(put("x", f"a\tb{end}"), NUMBERED) == [("a", "b")]
    assert pairs(put("x", "a\rb\tc"), NUMBERED) == [("a\rb", "c")]
    path = put("x", b"a\r" + b"b" * 99 + b"\tc\nd\te\n")
    assert skipping(path, NUMBERED, max_line_bytes=20)[:2] == ([("d", "e")], 1)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_of_two_sides_the_one_that_is_damaged_is_named(put: Put, ending: str, side: int) -> None:
    paths = [put("whole", "a\n"), put("whole", "a\n")]
    paths[side] = put(f"damaged.{ending}", "a\n")
    corpus = ParallelText(source=(paths[0],), target=(paths[1],))
    with pytest.raises(CorpusError, match=f"^cannot read {paths[side]}: "):
        list(read_pairs(corpus))


# Rows that cannot be read, and what has no end.


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_wrong_rows_are_refused_or_passed_over_and_counted(put: Put, name: str) -> None:
    rows = [b"source\ttarget", b"a\tb", b"one", b"1\t2\t3", b"\xff\ty", b"x" * 30 + b"\ty", b"c\td"]
    text = b"\n".join(rows)
    path = put(name, text.replace(b"\t", b",") if name == "x.csv" else text)
    assert f"{path}, line 3: " in refused(path, max_line_bytes=20)
    found, count, first = skipping(path, max_line_bytes=20)
    assert found == [("a", "b"), ("c", "d")]
    assert count == 4
    assert f"{path}, line 3: " in first


def test_wrong_lines_of_either_side_take_the_other_with_them(put: Put) -> None:
    source = put("s", b"a\n\xffb\nc\nd\ne\n")
    target = put("t", b"v\nw\nx\n" + b"y" * 99 + b"\nz\n")
    corpus = ParallelText((source,), (target,), max_line_bytes=50)
    with pytest.raises(CorpusError, match="s, line 2: not valid UTF-8"):
        list(read_pairs(corpus))
    skipped = Skipped()
    corpus = ParallelText((source,), (target,), max_line_bytes=50, skip_wrong=True)
    assert list(read_pairs(corpus, skipped)) == [("a", "v"), ("c", "x"), ("e", "z")]
    assert skipped.count == 2


@pytest.mark.parametrize("end", ["\r\r\n", "\r" * 50 + "\n"])
@pytest.mark.parametrize("size", [18, 19, 20])
def test_the_end_of_a_line_at_the_limit_is_one(put: Put, end: str, size: int) -> None:
    source, target = put("s", "a" * size + end + "b\n"), put("t", "x\ny\n")
    corpus = ParallelText((source,), (target,), max_line_bytes=20)
    assert list(read_pairs(corpus)) == [("a" * size, "x"), ("b", "y")]
    source = put("s", "a" * 20 + "\r\rc\nb\n")
    skipping = ParallelText((source,), (target,), max_line_bytes=20, skip_wrong=True)
    assert list(read_pairs(skipping)) == [("b", "y")]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_of_just_the_limit_is_read(put: Put, end: str) -> None:
    path = put("s", "é" * 10 + end)
    corpus = ParallelText((path,), (path,), max_line_bytes=20)
    assert list(read_pairs(corpus)) == [("é" * 10,) * 2]
    with pytest.raises(CorpusError, match=r"line 1: longer than max_line_bytes=19"):
        list(read_pairs(ParallelText((path,), (path,), max_line_bytes=19)))


def _endless(name: str, size: int) -> bytes:
    """A small file in which a text of ``size`` bytes is packed."""
    text = b"x" * size
    if name == "x.parquet":
        packed = io.BytesIO()
        table = pa.table({"source": ["a", text.decode()], "target": ["a", "b"]})
        pq.write_table(table, packed, compression="zstd")
        return packed.getvalue()
    if name == "x.zip":
        return zipped(**{"x.source": b"a\n" + text, "x.target": b"a\n"})
    tu = "<tu><tuv xml:lang='%s'><seg>a</seg></tuv><tuv xml:lang='target'><seg>a</seg></tuv></tu>"
    before = {
        "x.tsv.gz": b"source\ttarget\na\ta\n", "x.csv.gz": b'source,target\na,a\n"',
        "x.jsonl.gz": b'{"source": "a", "target": "a"}\n{"source": "',
        "x.tmx.gz": f"<tmx>{tu % 'source'}\n<tu><tuv><seg>".encode(),
        "x.attribute.tmx.gz": f"<tmx>{tu % 'source'}\n<tu a='".encode(),
    }[name]  # fmt: skip
    return gzip.compress(before + text, 1)


@pytest.mark.parametrize(
    "name",
    ["x.tsv.gz", "x.csv.gz", "x.jsonl.gz", "x.tmx.gz", "x.attribute.tmx.gz", "x.zip", "x.parquet"],
)
def test_what_has_no_end_is_refused_by_its_limit(put: Put, name: str) -> None:
    path = put(name, _endless(name, 3_000_000 if name == "x.parquet" else 30_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_pairs(ParallelText(pairs=(path,)))
    assert next(read) == ("a", "a")
    with pytest.raises(CorpusError, match=r"longer than max_line_bytes=1,048,576") as caught:
        next(read)
    assert f"{path}, " in str(caught.value)
    assert re.search(r"(line|row) [23]: ", str(caught.value))
    if name != "x.parquet":  # which stores a text as one piece
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 25_000  # KiB


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "zip", "zip://", "tar://"])
def test_what_unpacks_to_hundreds_of_times_its_size_is_refused(
    put: Put, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its lines is one; all together would fill the disk."""
    monkeypatch.setattr(bombs, "BOMB_BYTES", 2**17)
    text = 2**17 * b"a\ta\n"
    packed = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
        "zst": lambda text: pa.compress(text, "zstd", asbytes=True),
        "zip": lambda text: zipped(x=text), "zip://": lambda text: zipped(x=text),
        "tar://": as_tar,
    }[ending]  # fmt: skip

    def stored(name: str, text: bytes) -> str:
        path = put(f"{name}.{ending.replace('tar', 'tgz').removesuffix('://')}", packed(text))
        return f"{ending}folder/x::{path}" if "://" in ending else path

    path = stored("x.tsv", text)
    read = read_pairs(ParallelText(pairs=(path,), columns=(1, 2)))
    with pytest.raises(CorpusError, match=rf"cannot read {path}.*: it holds more than 200 times"):
        list(read)
    vectors = stored("x.vec", text.replace(b"\t", b" ").replace(b"a\n", b"1\n"))
    with pytest.raises(VectorFileError, match=r"x\.vec.*: it holds more than 200 times its size"):
        list(open_vectors(vectors, "glove").segments(0, 1))
    if "://" in ending:  # else digests are taken of what is packed
        with pytest.raises(CorpusError, match=rf"cannot read {path}: it holds more than 200"):
            record_inputs({"train": ParallelText(pairs=(path,))}, print)


def test_parquet_that_holds_hundreds_of_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = str(tmp_path / "x.parquet"), str(tmp_path / "v.parquet")
    texts = ["a" * 4000] * 200
    written: Any = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"source": texts, "target": texts}), path, **written)
    pq.write_table(pa.table({"word": texts, "vector": [[1.0]] * 200}), words, **written)
    assert len(pairs(path)) == 200  # small as it is
    assert next(iter(open_vectors(words, "parquet").segments(0, 1))).words
    monkeypatch.setattr(bombs, "BOMB_BYTES", 2**17)
    said = "it holds more than 200 times its size.*; write it without compression if it is meant"
    assert re.search(said, refused(path))
    with pytest.raises(VectorFileError, match=rf"cannot read {words}: {said}"):
        open_vectors(words, "parquet")


def test_an_archive_that_lies_about_the_size_of_what_it_packs_is_told(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bombs, "BOMB_BYTES", 2**17)
    content = bytearray(zipped(x=2**19 * b"a\ta\n"))
    for head, place in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        at = content.rindex(head) + place
        content[at : at + 4] = struct.pack("<I", 2**30)
    path = put("x.tsv.zip", bytes(content))
    for uri in (path, f"zip://folder/x::{path}"):
        assert "it holds more than 200 times its size" in refused(uri, NUMBERED)


def test_what_is_damaged_in_an_archive_is_one_line_for_its_digest(put: Put) -> None:
    content = bytearray(zipped(**{"x.tsv": b"a\tb\n" * 999}))
    content[content.index(b"x.tsv") + 20] ^= 0xFF
    inside = f"zip://folder/x.tsv::{put('x.zip', bytes(content))}"
    with pytest.raises(CorpusError, match=rf"cannot read {inside}: "):
        record_inputs({"train": ParallelText(pairs=(inside,))}, print)


class Endless(io.RawIOBase):
    """A stream without an end of lines, and of which only so much may be asked."""

    def __init__(self, unit: bytes, most: int) -> None:
        self._unit, self.left = unit, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = len(buffer)
        self.left -= count
        assert self.left > 0, "read on"
        buffer[:] = self._unit * count
        return count


@pytest.mark.parametrize("unit", [b"x", b"\r", b"\x01"])
@pytest.mark.parametrize("limit", [20, 2**20])
def test_a_line_without_an_end_is_refused_before_more_of_it_is_read(
    unit: bytes, limit: int
) -> None:
    stream = Endless(unit, 2 * limit + 2**21)
    lines = lines_of(io.BufferedReader(stream), "endless", limit)
    assert "endless, line 1: longer than max_line_bytes=" in str(next(lines))
    with pytest.raises(AssertionError, match="read on"):  # whoever passes it over goes on
        next(lines)


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_a_row_without_an_end_is_refused_before_more_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch, put: Put, ending: str
) -> None:
    monkeypatch.setattr(
        "dist_embed.data.text.lines.open_decompressed",
        lambda uri: io.BufferedReader(Endless(b"x", 2**18)),
    )
    numbered: Any = ("a", "b") if ending == "jsonl" else (1, 2)
    corpus = ParallelText(pairs=(put(f"x.{ending}", b""),), columns=numbered, max_line_bytes=2**16)
    with pytest.raises(CorpusError, match="line 1: longer than max_line_bytes=65,536"):
        next(read_pairs(corpus))


def test_a_long_text_that_many_rows_of_parquet_share_is_held_a_few_times(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 4000), pa.array(["x" * 1_000_000]))
    table = pa.table({"source": words, "target": ["a"] * 4000})
    pq.write_table(table, tmp_path / "x.parquet", store_schema=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_pairs(ParallelText(pairs=(str(tmp_path / "x.parquet"),)))
    assert len(next(read)[0]) == 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # of 4 GB


OF_A_CELL = r"""
import re, sys
from dist_embed.data.corpus import ParallelText, Skipped, read_pairs
def peak():  # getrusage has that of the process which started this one too
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
def read(name):
    paths = (f"{sys.argv[1]}/{name}.parquet",)
    corpus = ParallelText(pairs=paths, columns=("one", "two"), skip_wrong=True)
    return list(read_pairs(corpus, Skipped()))
read("small")
before = peak()
assert read("large") == [("a", "b")]
print((peak() - before) // 1024)
"""


def test_a_cell_of_parquet_that_is_too_long_is_held_a_few_times(tmp_path: Path) -> None:
    for name, cell in (("large.parquet", "a b " * 2**24), ("small.parquet", "a")):
        table = pa.table({"one": [cell, "a"], "two": ["b", "b"]})
        pq.write_table(table, tmp_path / name)
    found = subprocess.run(
        [sys.executable, "-c", OF_A_CELL, str(tmp_path)],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert int(found.stdout) < 3.6 * 64  # three times by pyarrow 26


KINDS_OF_TEXT = (
    pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(),
    pa.binary_view(), pa.dictionary(pa.int32(), pa.string()),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_TEXT, ids=str)
@pytest.mark.parametrize("within", ["", "struct", "map", "structs"])
def test_what_is_too_long_in_any_column_of_parquet_is_told_by_row(
    tmp_path: Path, kind: Any, within: str
) -> None:
    texts = ["a", "x" * 21, None, "x" * 20, "é" * 11, "b"]
    held = texts if pa.types.is_dictionary(kind) else [t and t.encode() for t in texts]
    values: Any = pa.array(held, kind.value_type if pa.types.is_dictionary(kind) else pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    there, column = values, "t"
    if within == "map":
        keys = pa.array(["en"] * len(texts))
        there, column = pa.MapArray.from_arrays(range(len(texts) + 1), keys, values), "t.en"
    elif within:
        there, column = pa.StructArray.from_arrays([values], ["en"]), "t.en"
    if within == "structs":
        there, column = pa.StructArray.from_arrays([there], ["in"]), "t.in.en"
    pq.write_table(pa.table({"t": there, "two": ["b"] * len(texts)}), tmp_path / "x.parquet")
    path, columns = str(tmp_path / "x.parquet"), (column, "two")
    read, skipped, *_ = skipping(path, columns, max_line_bytes=20)
    assert [source for source, _ in read] == ["a", "", "x" * 20, "b"]
    assert skipped == 2
    assert "row 2: longer than max_line_bytes=20" in refused(path, columns, max_line_bytes=20)
