"""TMX: units of translation in XML, read as a stream.

Python's other parsers of XML build trees, or hide the declarations of entities from who reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO
from xml.parsers import expat

from dist_embed.data.text.rows import (
    Column,
    CorpusError,
    Pair,
    WrongRow,
    cell,
    listed,
    names_alone,
    too_long,
)

_BLOCK_BYTES = 2**16
# What they hold is markup of the text's own format. (https://www.gala-global.org/tmx-14b)
_NO_TEXT = ("bpt", "ept", "it", "ph", "ut")


def tmx_pairs(
    file: IO[bytes], name: str, columns: tuple[Column, Column], limit: int
) -> Iterator[Pair | WrongRow]:
    """Pairs of an open file that messages call ``name``: units that have both languages, others
    are passed over.

    ``columns`` are codes of languages; ``en`` stands for ``en-GB`` too. Raises CorpusError, also
    where no unit has both.
    """
    units = _Units(name, limit)
    wanted = names_alone(name, columns)
    seen: dict[str, None] = {}
    any_found = False
    while True:
        block = file.read(_BLOCK_BYTES)
        for unit in units.feed(block):
            if isinstance(unit, WrongRow):
                any_found = True
                yield unit
                continue
            place, texts = unit
            seen.update(dict.fromkeys(language for language, _ in texts))
            try:
                source, target = (_of_language(texts, one) for one in wanted)
                if source is not None and target is not None:
                    any_found = True
                    yield cell(source, limit), cell(target, limit)
            except ValueError as exc:
                any_found = True
                yield WrongRow(f"{place}: {exc}")
        if not block:
            break
    if not any_found:
        raise CorpusError(
            f"{name}: no unit has both {wanted[0]!r} and {wanted[1]!r}; languages there are "
            f"{listed(seen)}"
        )


# A unit's texts with their languages, and where it begins.
_Unit = tuple[str, list[tuple[str, str]]]


class _Units:
    """What has been fed of a file, as units."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._refuse_entity
        self._parser.SkippedEntityHandler = self._skipped
        self._fed = 0
        self._units: list[_Unit | WrongRow] = []
        self._is_wrong = False
        self._place = ""
        self._texts: list[tuple[str, str]] = []
        self._language = ""
        self._segment: list[str] | None = None
        self._size = 0
        self._in_markup = 0

    def feed(self, block: bytes) -> list[_Unit | WrongRow]:
        """The units that end in the next bytes; without any, in the rest. Raises CorpusError."""
        self._units = []
        self._fed += len(block)
        try:
            self._parser.Parse(block, not block)
        except (expat.ExpatError, LookupError, ValueError) as exc:  # its encoding may be unknown
            raise CorpusError(f"cannot read {self._name}: {exc}") from exc
        # What has no end yet is kept by the parser.
        if self._fed - self._parser.CurrentByteIndex > self._limit + _BLOCK_BYTES:
            raise CorpusError(f"{self._here()}: a tag or comment is {too_long(self._limit)}")
        return self._units

    def _here(self) -> str:
        return f"{self._name}, line {self._parser.CurrentLineNumber}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "tu":
            self._place, self._texts, self._is_wrong = self._here(), [], False
        elif tag == "tuv":
            self._language = attributes.get("xml:lang", attributes.get("lang", ""))
        elif tag == "seg":
            self._segment, self._size = [], 0
        elif tag in _NO_TEXT:
            self._in_markup += 1

    def _end(self, tag: str) -> None:
        if tag == "tu" and not self._is_wrong:
            self._units.append((self._place, self._texts))
        elif tag == "seg" and self._segment is not None:
            self._texts.append((self._language, "".join(self._segment)))
            self._segment = None
        elif tag in _NO_TEXT:
            self._in_markup -= 1

    def _characters(self, text: str) -> None:
        if self._segment is None or self._in_markup or self._is_wrong:
            return
        self._size += len(text)
        if self._size > self._limit:
            self._is_wrong = True
            self._units.append(WrongRow(f"{self._here()}: a text {too_long(self._limit)}"))
        self._segment.append(text)

    def _refuse_entity(self, entity: str, *_: object) -> None:
        raise CorpusError(
            f"{self._here()}: declares the entity {entity!r}; none is followed, for a few of them "
            "can stand for gigabytes: write them out (xmllint --noent)"
        )

    def _skipped(self, entity: str, _: bool) -> None:
        raise CorpusError(f"{self._here()}: the entity {entity!r} is declared nowhere in the file")


def _of_language(texts: list[tuple[str, str]], wanted: str) -> str | None:
    """The text of a language; None: there is none. Raises ValueError where there are several."""
    code = wanted.lower().replace("_", "-")
    codes = [(language.lower().replace("_", "-"), text) for language, text in texts]
    found = [text for language, text in codes if language == code]
    found = found or [text for language, text in codes if language.startswith(f"{code}-")]
    if len(found) > 1:
        raise ValueError(f"{len(found)} texts of {wanted!r}: {listed([one for one, _ in texts])}")
    return found[0] if found else None
