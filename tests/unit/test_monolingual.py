from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dist_embed.data import monolingual
from dist_embed.data.monolingual import Words, read_monolingual
from dist_embed.data.text.rows import CorpusError
from dist_embed.errors import UserError

LINES = ["b a  b", "", " c b a ", "\t", "c\u00a0d e", "b"]


@pytest.mark.parametrize("block", [1, 4_000_000])
@pytest.mark.parametrize("min_count", [1, 2, 4])
def test_words_are_counted_and_numbered_by_frequency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, min_count: int
) -> None:
    monkeypatch.setattr(monolingual, "_BLOCK_CHARACTERS", block)
    monkeypatch.setattr(monolingual, "_LEAST_ROWS", 3 if block == 1 else 1_000_000)
    (tmp_path / "1.txt").write_text("\n".join(LINES[:3]))
    with gzip.open(tmp_path / "2.txt.gz", "wt") as file:
        file.write("\n".join(LINES[3:]) + "\n")
    found = read_monolingual(str(tmp_path / "*.txt*"), min_count=min_count)
    split = [line.split() for line in LINES]
    counts = Counter(word for words in split for word in words)
    kept = sorted((word for word in counts if counts[word] >= min_count),
                  key=lambda word: (-counts[word], word))  # fmt: skip
    assert list(found.words) == kept
    assert found.counts.tolist() == [counts[word] for word in kept]
    starts = np.concatenate([[0], found.line_ends])
    lines = [[kept[i] for i in found.ids[begin:end]] for begin, end in pairwise(starts)]
    assert lines == [[word for word in words if word in kept] for words in split]
    assert found.ids.dtype == np.int32


def test_words_are_a_sequence_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monolingual, "_WORDS_AT_ONCE", 2)
    known = ["b", "a", "c", "ä", ""]
    words = Words(pa.array(known, pa.large_string()))
    assert words[0] == "b"
    assert [words[-1], words[np.int32(3)]] == ["", "ä"]
    assert (words[1:3], words[::-2]) == (["a", "c"], ["", "c", "b"])
    assert (list(words), list(reversed(words)), len(words)) == (known, known[::-1], 5)
    assert "ä" in words
    assert ("d" in words, 0 in words, None in words) == (False, False, False)
    assert [words.index(word) for word in known] == list(range(5))
    assert [words.index("c", 1), words.index("c", -3, 3), words.count("c")] == [2, 2, 1]
    for given in (("d",), ("c", 3), ("c", 0, 2), ("c", 3, 1), (7,)):
        with pytest.raises(ValueError, match="is not among the words"):
            words.index(*given)
    with pytest.raises(IndexError):
        words[5]
    assert words == known
    assert words == Words(words.array)
    assert words != known[:4]
    assert words != "bacä"
    assert repr(words) == "<5 words: 'b', 'a', 'c', 'ä', ''>"
    assert repr(Words(pa.array(["x"] * 11))).endswith("'x', 'x', …>")


def test_text_without_such_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b a\n\n")
    with pytest.raises(UserError, match=r"t\.txt: no word occurs 3 times or more"):
        read_monolingual(str(tmp_path / "t.txt"), min_count=3)
    with pytest.raises(CorpusError, match=r"none\.txt: no such file"):
        read_monolingual(str(tmp_path / "none.txt"))


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(b"a b\n" + b"c " * 500))
    assert len(read_monolingual(str(path), min_count=1, max_line_bytes=1000).ids) == 502
    with pytest.raises(CorpusError, match=r"t\.txt\.gz, line 2: longer than max_line_bytes=999"):
        read_monolingual(str(path), min_count=1, max_line_bytes=999)
