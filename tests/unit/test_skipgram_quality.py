"""The comparison of the example with gensim: what its scores say, and a tiny run of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

models = pytest.importorskip("gensim.models")
EXAMPLES = Path(__file__).parents[2] / "docs/examples"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("skipgram_quality")


def vectors_of(rows: dict[str, list[float]]) -> models.KeyedVectors:
    vectors = models.KeyedVectors(len(next(iter(rows.values()))))
    vectors.add_vectors(list(rows), np.array(list(rows.values())))
    return vectors


def test_kinds_are_those_that_articles_show(quality: ModuleType, tmp_path: Path) -> None:
    kinds = quality.generated(tmp_path / "t.txt", 30, 400)
    text = (tmp_path / "t.txt").read_text().split()
    assert len(kinds) > 100
    assert kinds.keys() <= set(text)
    assert {kind[0] for kind in kinds.values()} == set("oae")
    for noun, kind in kinds.items():  # the noun's own ending tells number and case
        assert noun.endswith(kind[1:].replace("k", "ka")), (noun, kind)


def test_neighbours_of_a_kind_are_counted(quality: ModuleType) -> None:
    draw = np.random.default_rng(1)
    angle = np.repeat([0.0, 1.0, 2.0], 12) + draw.uniform(0, 0.1, 36)
    rows = {f"w{i}": [np.cos(a), np.sin(a)] for i, a in enumerate(angle.tolist())}
    kinds = {f"w{i}": "abc"[i // 12] for i in range(36)}
    assert quality.of_a_kind(vectors_of(rows), kinds) == 1.0
    mixed = {f"w{i}": "abc"[i % 3] for i in range(36)}
    assert abs(quality.of_a_kind(vectors_of(rows), mixed) - 11 / 35) < 0.1
    some = dict(list(kinds.items())[:24])  # other words are no nouns
    assert quality.of_a_kind(vectors_of(rows), some) == 1.0


def test_translations_are_mutual_and_frequent(quality: ModuleType) -> None:
    source = ["the dog", "the cat", "a dog", "a cat", "the bird"] * 5 + ["the fish"]
    target = ["der Hund", "der Kater", "ein Hund", "ein Kater", "der Vogel"] * 5 + ["der Fisch"]
    assert set(quality.translations(source, target)) == {
        ("the", "der"), ("a", "ein"), ("dog", "Hund"), ("cat", "Kater"), ("bird", "Vogel")
    }  # fmt: skip


def test_agreement_is_that_of_cosines(quality: ModuleType) -> None:
    draw = np.random.default_rng(2)
    rows = {f"a{i}": row for i, row in enumerate(draw.normal(size=(40, 2)).tolist())}
    pairs = [(word, f"b{word}") for word in rows]
    turned = {f"b{word}": [-3 * y, 3 * x] for word, (x, y) in rows.items()}
    one = vectors_of(rows)
    assert quality.agreement(one, vectors_of(turned), pairs) == pytest.approx(1.0)
    other = {f"b{word}": row for word, row in zip(rows, reversed(rows.values()), strict=True)}
    assert abs(quality.agreement(one, vectors_of(other), pairs)) < 0.3
    assert quality.agreement(one, vectors_of(turned), [*pairs, ("x", "bx")]) == pytest.approx(1.0)


def test_agreement_is_without_what_frequencies_explain(quality: ModuleType) -> None:
    draw = np.random.default_rng(3)
    # They have nothing in common but a part that grows with a word's place by frequency.
    common = np.sqrt(np.arange(100) / 100)[:, None] * np.ones(64)
    sides = [
        {f"{side}{i}": row for i, row in enumerate((draw.normal(size=(100, 64)) + common).tolist())}
        for side in "ab"
    ]
    pairs = list(zip(*sides, strict=True))
    one, other = map(vectors_of, sides)
    above = np.triu_indices(100, 1)
    raw = [quality.cosines_of(side, list(side.key_to_index))[above] for side in (one, other)]
    assert np.corrcoef(raw)[0, 1] > 0.4
    assert abs(quality.agreement(one, other, pairs)) < 0.1


def test_a_tiny_comparison_tells_both(
    quality: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MULTI30K_DIR", raising=False)
    sizes = {"seeds": 1, "nouns": 10, "sentences": 3000, "epochs": 4, "width": 16}
    given = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    monkeypatch.setattr(sys, "argv", ["skipgram_quality.py", *given])
    quality.main()
    said = capsys.readouterr().out
    assert "MULTI30K_DIR is not set" in said
    rows = [line.split("|") for line in said.splitlines() if line.startswith("| ")]
    found = {row[1].strip(): float(row[2]) for row in rows[1:]}
    assert list(found) == ["gensim", "skipgram.py"]
    assert min(found.values()) > 0.2  # 0.06 by chance
