"""Every example of text in docs/formats.md is made, and read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dist_embed.data.corpus import read_pairs
from dist_embed.data.settings import CorpusSection
from dist_embed.data.sources import parallel_text

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
(TEXT,) = re.findall(r"^## Text\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
ROWS = [
    re.split(r" *\| *", row.strip("| "))
    for row in re.findall(r"^\|.*\|$", TEXT, re.MULTILINE)[2:]
]  # fmt: skip


def files(content: dict[str, str]) -> None:
    for name, text in content.items():
        Path(name).write_text(text)


def zip_of(name: str, content: dict[str, str]) -> None:
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, text in content.items():
            archive.writestr(member, text)


def parquet(name: str, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), name)


KNOWN = {
    "files": files, "zip_of": zip_of, "parquet": parquet, "pa": pa, "bz2": bz2, "gzip": gzip,
    "lzma": lzma,
}  # fmt: skip


@pytest.mark.parametrize(("form", "settings", "content"), ROWS, ids=[row[0][:40] for row in ROWS])
def test_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, settings: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    section = CorpusSection.model_validate(yaml.safe_load(settings.strip("`")))
    content = content.strip("`")
    if re.match(r"\w+\(", content):
        exec(content.replace("⏎", "\\n"), dict(KNOWN))
    else:
        Path(str(section.pairs)).write_text(content.replace("⏎", "\n").replace("⇥", "\t"))
    assert list(read_pairs(parallel_text(section))) == [("a cat", "eine Katze")], form


def test_every_ending_has_an_example() -> None:
    (named,) = re.findall(r"Endings tell the form \((.*?)\)", TEXT, re.DOTALL)
    endings = re.findall(r"`(\.\w+)`", named)
    shown = " ".join(settings for _, settings, _ in ROWS)
    assert [ending for ending in endings if ending not in shown] == []
