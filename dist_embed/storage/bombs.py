"""How much a compressed file may hold: what was made to fill a disk, or to take for ever, is
refused.
"""

from __future__ import annotations

import io
from typing import IO, Any

_BLOCK_BYTES = 2**18
# Text and numbers shrink to some tenths, and further where they repeat themselves.
MOST_TIMES, BOMB_BYTES = 200, 2**26


# No OSError, which a store's calls are repeated for.
class Bomb(ValueError):
    """A compressed file holds more than `BOMB_BYTES`, and more than `MOST_TIMES` its own size."""


def check_held(num_bytes: int, packed_bytes: int, remedy: str = "unpack it") -> None:
    """Refuse to have so many bytes of a file of ``packed_bytes``. Raises Bomb, with a ``remedy``
    where it is meant.
    """
    if num_bytes > max(BOMB_BYTES, MOST_TIMES * packed_bytes):
        raise Bomb(
            f"it holds more than {MOST_TIMES} times its size, as what is made to fill a disk; "
            f"{remedy} if it is meant"
        )


def size_of(file: Any) -> int | None:
    """Bytes of a file that was just opened; None where that is not known, as of some HTTP."""
    # Of a file in an archive fsspec has it here; to look for its end would unpack all of it.
    size: int | None = getattr(file, "size", None)
    if size is None:
        try:
            file.seek(0, io.SEEK_END)
            size = file.tell()  # paramiko's `seek` returns nothing (5.1)
            file.seek(0)
        except (OSError, ValueError):
            return None
    return size


def bounded(file: Any, packed: Any, packed_bytes: int | None) -> IO[bytes]:
    """``file``, which unpacks ``packed`` as it is read. To read it raises Bomb; where
    ``packed_bytes`` is not known, what has been read of ``packed`` counts.
    """
    return io.BufferedReader(_Bounded(file, packed, packed_bytes), _BLOCK_BYTES)


class _Bounded(io.RawIOBase):
    def __init__(self, file: Any, packed: Any, packed_bytes: int | None) -> None:
        self._file, self._packed, self._packed_bytes = file, packed, packed_bytes
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._given += len(data)
        known = self._packed_bytes
        check_held(self._given, self._packed.tell() if known is None else known)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()  # which what unpacks leaves open
        super().close()
