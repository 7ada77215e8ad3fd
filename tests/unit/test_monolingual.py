from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dist_embed.data import monolingual
from dist_embed.data.corpus import CorpusError
from dist_embed.data.monolingual import read_monolingual
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
    assert found.words.to_pylist() == kept
    assert found.counts.tolist() == [counts[word] for word in kept]
    starts = np.concatenate([[0], found.line_ends])
    lines = [[kept[i] for i in found.ids[begin:end]] for begin, end in pairwise(starts)]
    assert lines == [[word for word in words if word in kept] for words in split]
    assert found.ids.dtype == np.int32


def test_text_without_such_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b a\n\n")
    with pytest.raises(UserError, match=r"t\.txt: no word occurs 3 times or more"):
        read_monolingual(str(tmp_path / "t.txt"), min_count=3)
    with pytest.raises(CorpusError, match=r"none\.txt: no such file"):
        read_monolingual(str(tmp_path / "none.txt"))
