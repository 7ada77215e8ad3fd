"""Many words in one buffer: as Python strings a million of them take over 60 MB."""

from __future__ import annotations

from array import array


class WordList:
    """Words in the order in which they were added."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self._text[self._ends[place] : self._ends[place + 1]].decode()

    def append(self, word: str) -> None:
        """Add one."""
        self._text += word.encode()
        self._ends.append(len(self._text))

    def part(self, first: int, end: int) -> list[str]:
        """The words from number ``first`` up to ``end``, or to the last."""
        return [self[place] for place in range(first, min(end, len(self)))]
