"""Words as a table on disk, against the library's own tokenizer of the same words."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from dist_embed.data import word_table
from dist_embed.data.stretches import encode_column
from dist_embed.data.table_tokenizer import TableTokenizer
from dist_embed.data.tokenizer import SPACE, SPECIAL_TOKENS, Tokenizer
from dist_embed.data.word_table import WordTable, write_words
from tests.unit.small_corpus import ODD, odd_texts

# Of 0 to 40 bytes, beside each other in the file, some the beginning of others.
WORDS = [SPACE, "a", "é", "ab", "abcdefg", *[("xyzabcdefgh" * 4)[:n] for n in range(8, 41)],
         '"', "\\", '▁q"\\u', "\n", "\x01", "\x7f", "ß▁", "\u2028", "漢字"]  # fmt: skip
DISTINCT = list(dict.fromkeys(WORDS))


def test_each_word_has_its_place_and_others_have_none(tmp_path: Path) -> None:
    words = [*SPECIAL_TOKENS, *DISTINCT]
    write_words(str(tmp_path / "t"), pa.array(words))
    table = WordTable(str(tmp_path / "t"))
    assert len(table) == len(words)
    others = ["", "b", "abc ", "a\0", "xyzabcde\0", "xyzabcdefghxyzabcdefgh_", "▁▁"]
    asked = pa.array([*others, *words[::-1], *others])
    expected = [1] * len(others) + [*range(len(words))][::-1] + [1] * len(others)
    assert table.ids_of(asked).tolist() == expected
    assert table.ids_of(asked.slice(len(others), 3)).tolist() == expected[len(others) :][:3]
    assert table.ids_of(pa.array([], pa.string())).tolist() == []
    assert table.words_of([7, 4, 7]) == [words[7], words[4], words[7]]


def test_words_with_one_hash_get_another_seed_or_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = word_table._hashes

    def colliding(words: Any, seed: int) -> Any:
        return real(words, seed) if seed == 2 else real(words, seed) % np.uint64(3)

    monkeypatch.setattr(word_table, "_hashes", colliding)
    write_words(str(tmp_path / "t"), pa.array([*SPECIAL_TOKENS, *DISTINCT]))
    table = WordTable(str(tmp_path / "t"))
    assert table.ids_of(pa.array(DISTINCT)).tolist() == [*range(4, 4 + len(DISTINCT))]
    of_first = real(pa.array([DISTINCT[0]], pa.large_string()), 2)
    monkeypatch.setattr(word_table, "_hashes", lambda words, seed: of_first.repeat(len(words)))
    assert table.ids_of(pa.array(["another", DISTINCT[0]])).tolist() == [1, 4]
    with pytest.raises(ValueError, match="not distinct"):
        write_words(str(tmp_path / "u"), pa.array(["a", "a"]))


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no table")
    with pytest.raises(ValueError, match=r"text is no table of words"):
        WordTable(str(tmp_path / "text"))
    with pa.OSFile(str(tmp_path / "other"), "wb") as file:
        batch = pa.record_batch({"word": ["a"]})
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
    with pytest.raises(ValueError, match="its columns are"):
        WordTable(str(tmp_path / "other"))


PATHS = [
    {"lowercase": False, "split_punctuation": True},
    {"lowercase": True, "split_punctuation": False, "form": "nfkc"},
    {"lowercase": "letters", "split_punctuation": True, "form": "nfc"},
    {"lowercase": False, "split_punctuation": False, "pieces": "subword-nmt"},
    {"lowercase": False, "split_punctuation": False, "pieces": "sentencepiece"},
]


@pytest.fixture(scope="module", params=PATHS, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, TableTokenizer]:
    """The library's tokenizer of some words of odd texts, and ours."""
    empty = Tokenizer.from_words([], **request.param)
    texts = ["".join(ODD[n : n + 3]) for n in range(0, len(ODD), 2)]
    found = dict.fromkeys(word for text in texts for word in empty.split(text))
    words = [*(word for word in found if word not in SPECIAL_TOKENS), *DISTINCT]
    words = list(dict.fromkeys(words))
    path = tempfile.mktemp(prefix="dist_embed-test-")
    tables = TableTokenizer.write(path, pa.array(words), **request.param)
    Path(path).unlink()  # it is mapped
    return Tokenizer.from_words(words, **request.param), tables


def test_it_is_the_librarys_tokenizer(both: tuple[Tokenizer, TableTokenizer]) -> None:
    library, ours = both
    assert ours.to_json() == library.to_json()
    assert (ours.json_digest, ours.digest) == (library.json_digest, library.digest)
    assert ours.size == library.size
    assert ours.tokens() == library.tokens() == ours.tokens_of(range(ours.size))
    assert ours.column().to_pylist() == library.column().to_pylist()
    for word in [*library.tokens(), "unheard-of", ""]:
        assert ours.id_of(word) == library.id_of(word)
    assert ours.ids_of(["no", *library.tokens()]) == library.ids_of(["no", *library.tokens()])
    assert [ours.token(i) for i in (0, 5)] == [library.token(i) for i in (0, 5)]
    told = ("form", "lowercase", "mark", "pieces", "knows_words")
    assert [getattr(ours, name) for name in told] == [getattr(library, name) for name in told]


@given(texts=odd_texts)
@settings(max_examples=30, deadline=None)
def test_it_encodes_and_decodes_as_the_library_does(
    both: tuple[Tokenizer, TableTokenizer], texts: list[str]
) -> None:
    library, ours = both
    ids = library.encode(texts)
    assert ours.encode(texts) == ids
    # Without a blank, as blocks of text come.
    short = [text.replace(" ", "") for text in texts if text.replace(" ", "")]
    assert ours.encode(short) == library.encode(short)
    assert ours.encode_hashed(texts, 7) == library.encode_hashed(texts, 7)
    assert encode_column(ours, texts, 7).equals(encode_column(library, texts, 7))
    for unknown in ("<unk>", "?"):
        sentences = [[2, *sentence, 3, 0] for sentence in ids]
        assert ours.decode(sentences, unknown=unknown) == library.decode(sentences, unknown=unknown)


@pytest.mark.parametrize("form", ["none", "nfkc"])
def test_texts_that_cannot_be_told_apart_are_split_alone(tmp_path: Path, form: Any) -> None:
    words, path = ["▁a", "▁", "a", "▁b"], {"lowercase": False, "split_punctuation": True}
    library = Tokenizer.from_words(words, form=form, **path)
    ours = TableTokenizer.write(str(tmp_path / "t"), pa.array(words), form=form, **path)
    for texts in (
        ["a▁b", "a"], ["a", "▁a", "a"], ["a▁", "a"], ["a", "", "a"], ["a", "▁", "", ","],
        [",", "a,b"], ["\ufeff", "a▁b"], ["\u3000", "a▁b"], ["a\u00a8", "b"], ["\u00a8", "a"],
        ["a", "\ufeffb"], ["\t", "a"],
        ["\ufeff", "a\u00a8b"], ["\t", "a\u00a8b"],
    ):  # fmt: skip
        assert ours.encode(texts) == library.encode(texts)


def test_another_process_maps_the_same_file(tmp_path: Path) -> None:
    path = {"lowercase": False, "split_punctuation": True}
    ours = TableTokenizer.write(
        str(tmp_path / "t"), pa.array([f"▁{n}" for n in range(9999)]), **path
    )
    sent = pickle.dumps((ours, ours))
    assert len(sent) < 4000
    first, second = pickle.loads(sent)
    assert first is second
    assert first.encode(["77 x 12"]) == ours.encode(["77 x 12"]) == [[81, 1, 16]]


def test_a_word_takes_less_than_40_bytes_on_disk(tmp_path: Path) -> None:
    """Words of some nine letters, as docs/benchmarks/large_vocabulary.md has them."""
    words = [f"▁{n * 2654435761 % 2**32:x}" for n in range(50_000)]
    write_words(str(tmp_path / "t"), pa.array(words))
    assert (tmp_path / "t").stat().st_size < 40 * len(words)
