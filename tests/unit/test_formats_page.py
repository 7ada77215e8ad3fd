"""Every example of docs/formats.md is made, and read."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from dist_embed.config.load import load_config
from dist_embed.data.tokenizer import SPACE, Tokenizer
from dist_embed.embedding.composed_rows import ComposedRows
from dist_embed.errors import UserError
from dist_embed.training.vector_files import check_vectors
from dist_embed.vectors.fasttext_binary import FastTextBinary
from dist_embed.vectors.formats import detect_format, open_file_of
from dist_embed.vectors.match import VocabularyKeys
from dist_embed.vectors.settings import Format, PretrainedSection
from tests.unit.fasttext_file import model
from tests.unit.vector_entries import read

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
WORDS = ["the", "1990"]
VECTORS = np.array([[0.5, 1], [2, -3]], np.float32)


def zip_of(name: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)


def tar_of(name: str, files: dict[str, bytes]) -> None:
    with tarfile.open(name, f"w:{name.rpartition('.')[2].replace('tar', '')}") as archive:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


KNOWN: dict[str, Any] = {
    "gzip": gzip, "pickle": pickle, "zipfile": zipfile, "np": np, "pa": pa, "pq": pq,
    "save_file": save_file, "model": model, "zip_of": zip_of, "tar_of": tar_of,
    "words": WORDS, "vectors": VECTORS, "text": b"the 0.5 1\n1990 2 -3\n",
}  # fmt: skip


def examples(section: str, number: int) -> list[tuple[str, str, str]]:
    """The rows of a section's ``number``-th table; of the last two columns what is code."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    table = [block for block in text.split("\n\n") if block.startswith("|")][number]
    rows = [row.strip("| ").split(" | ") for row in table.strip().split("\n")[2:]]
    return [(form, first.strip("`"), second.strip("`")) for form, first, second in rows]


def make(name: str, content: str) -> None:
    """A file of the page in the working folder: by its code, or as it is shown."""
    if re.match(r"[\w.]+\(", content):
        exec(content.replace("⏎", "\\n"), dict(KNOWN))
    else:
        Path(name).write_text(content.replace("⏎", "\n").replace("⇥", "\t"))


@pytest.mark.parametrize(("form", "settings", "content"), examples("Vectors", 0))
def test_vectors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, settings: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = PretrainedSection.model_validate(yaml.safe_load(settings))
    Path("words.txt").write_text("the\n1990\n")
    make(wanted.uri, content)
    tokenizer = Tokenizer.from_words(
        [SPACE + word for word in WORDS], lowercase=False, split_punctuation=False
    )
    keys = VocabularyKeys(tokenizer, wanted.match, wanted.prefix)
    file = open_file_of(wanted)
    found = np.full((tokenizer.size, 2), np.nan, np.float32)
    if isinstance(file, FastTextBinary):
        listed = ComposedRows(file, np.arange(tokenizer.size), tokenizer, keys, others=False).listed
        assert (listed >= 0).sum() == len(WORDS), form
        matrix = {int(row): vector for rows, vectors in file.vectors_of(
            np.sort((listed[listed >= 0] << 32) + (listed >= 0).nonzero()[0])
        ) for row, vector in zip(rows, vectors, strict=True)}  # fmt: skip
        for row, vector in matrix.items():
            found[row] = vector
    else:
        names, vectors = read(file, 2)
        pairs = keys.match(names)
        found[pairs.ids] = vectors[pairs.places]
    np.testing.assert_array_equal(found[-len(WORDS) :], VECTORS, err_msg=form)


def test_each_format_can_be_named_in_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[Format] = set()
    for number, (form, written, content) in enumerate(examples("Vectors", 0)):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        Path("words.txt").write_text("the\n1990\n")
        given = yaml.safe_load(written)
        make(given["uri"], content)
        format = detect_format(given["uri"], with_words="words" in given)
        source = {"pretrained": given | {"format": format}}
        Path("c.yaml").write_text(yaml.safe_dump({
            "run": {"uri": "r"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
            "embedding": {"width": 2, "tables": {"source": source}},
        }))  # fmt: skip
        config = load_config("c.yaml")
        check_vectors(config)
        assert config.embedding.tables.source is not None, form
        seen.add(format)
    assert seen == {*get_args(Format)}


@pytest.mark.parametrize(("form", "content", "instead"), examples("Vectors", 1))
def test_what_is_not_read_is_refused_with_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, content: str, instead: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make("", content)
    (made,) = tmp_path.iterdir()
    words = str(made) if made.suffix == ".npy" else None
    with pytest.raises(UserError, match=re.escape(instead)):
        open_file_of(PretrainedSection(uri=str(made), words=words))
