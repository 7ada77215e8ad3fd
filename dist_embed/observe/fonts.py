"""Which installed fonts have the letters of what is to be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_USUAL = "sans-serif"
# They have a box for every letter, or letters at the places of others.
_NO_LETTERS = ("Last Resort", "STIX", "cm")


def families_for(texts: Iterable[str]) -> list[str]:
    """Families whose letters matplotlib is to take, the first that has one first: its usual one,
    and of the others installed as few as have all letters that it lacks, or all that there are.
    """
    lacking, families = _lacking(texts), [_USUAL]
    if not lacking:
        return families
    from matplotlib.font_manager import fontManager

    names = {entry.name for entry in fontManager.ttflist}
    letters = {
        name: lacking & _letters_of(name) for name in names if not name.startswith(_NO_LETTERS)
    }
    while lacking:
        best = min(letters, key=lambda name: (-len(letters[name] & lacking), name), default=None)
        if best is None or not letters[best] & lacking:
            break
        families.append(best)
        lacking -= letters[best]
    return families


def without_letters(words: Sequence[str]) -> list[str]:
    """Those of ``words`` with a letter that no installed font has; a picture has a box for it."""
    known = set().union(*map(_letters_of, families_for(words)))
    return [word for word in words if any(ord(letter) not in known for letter in word)]


def _lacking(texts: Iterable[str]) -> set[int]:
    """The letters that matplotlib's usual font lacks."""
    return {ord(letter) for text in texts for letter in text} - _letters_of(_USUAL)


def _letters_of(family: str) -> set[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return set(get_font(findfont(FontProperties(family=[family]))).get_charmap())
