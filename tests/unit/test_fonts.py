from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, image

from dist_embed.explore.flat_map import draw_map
from dist_embed.observe import fonts
from dist_embed.observe.fonts import families_for, without_letters

WORDS = ["house", "東京", "naïve", "хлеб", "语言", "हिन्दी"]


def made_font(path: Path, family: str, letters: str) -> None:
    """A font whose letters are triangles."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 900))
    pen.lineTo((900, 0))
    pen.closePath()
    names = [".notdef", *(f"u{ord(letter):04x}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):04x}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fonts of matplotlib alone, whatever else the machine has."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    yield
    font_manager.fontManager._findfont_cached.cache_clear()


@pytest.fixture
def asian(alone: None, tmp_path: Path) -> None:
    """Beside them three of which two are needed."""
    for family, letters in (("A few", "東"), ("Many", "東京语"), ("Others", "言")):
        made_font(tmp_path / f"{family}.ttf", family, letters)
        font_manager.fontManager.addfont(tmp_path / f"{family}.ttf")


@pytest.mark.usefixtures("alone")
def test_words_that_no_font_has_are_found() -> None:
    assert families_for(["house", "naïve", "хлеб", ""]) == ["sans-serif"]
    assert families_for(WORDS) == ["sans-serif"]
    assert without_letters(WORDS) == ["東京", "语言", "हिन्दी"]


@pytest.mark.usefixtures("asian")
def test_as_few_fonts_are_taken_as_have_all_letters() -> None:
    assert families_for(WORDS) == ["sans-serif", "Many", "Others"]
    assert families_for(["house", "京"]) == ["sans-serif", "Many"]
    assert without_letters(WORDS) == ["हिन्दी"]


@pytest.mark.usefixtures("asian")
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_map_has_the_letters_of_installed_fonts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    places = np.random.default_rng(1).standard_normal((4, 2))
    words = ["東京", "语言", "a", "b"]

    def drawn(name: str) -> Path:
        draw_map(str(tmp_path / f"{name}.{ending}"), places, words, "map")
        return tmp_path / f"{name}.{ending}"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = drawn("found")
        monkeypatch.setattr(fonts, "_NO_LETTERS", ("",))
        boxes = drawn("boxes")  # of which nothing is said but by the command
    if ending == "png":
        assert not np.array_equal(image.imread(found), image.imread(boxes))
    else:
        assert "Many" in found.read_text()
        assert "東京" in found.read_text()
