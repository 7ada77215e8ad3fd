"""Lines of text that commands read and write: of a file, or of a standard stream."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dist_embed.errors import UserError
from dist_embed.streams import write_out

# Bytes. What a search takes of a line, `search.max_source_tokens` says.
LONGEST_LINE = 2**26


def lines_from(name: str) -> Iterator[str]:
    """The lines of a file, one by one as they come; ``-``: of standard input.

    Raises what `data.text.lines.read_lines` does, and UserError for a closed standard input, at
    once.
    """
    from dist_embed.data.text.lines import decoded_lines, read_lines

    if name == "-":
        return decoded_lines(_standard_input(), "standard input", limit=LONGEST_LINE, markup=True)
    path = Path(name)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe; fsspec seeks
        return _lines_of_pipe(path)
    return read_lines(name, limit=LONGEST_LINE, markup=True)


def _lines_of_pipe(path: Path) -> Iterator[str]:
    from dist_embed.data.text.lines import decoded_lines

    with path.open("rb") as file:
        yield from decoded_lines(file, str(path), limit=LONGEST_LINE, markup=True)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise UserError("--input: '-' is not allowed: standard input is closed")
    try:
        # Of its own: a thread that waits for sys.stdin as the interpreter ends aborts the process
        # (CPython 3.11, _enter_buffered_busy).
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except io.UnsupportedOperation:  # a stream of a script's own
        return sys.stdin.buffer


@contextmanager
def lines_to(name: str) -> Iterator[Callable[[list[str]], None]]:
    """What writes lines to a file, which has its name once the block has ended well; ``-``: to
    standard output, at once.

    Raises UserError for a closed standard output.
    """
    if name != "-":
        from dist_embed.storage.uri import output_file

        with output_file(name) as file:
            yield lambda lines: _put(file, lines)
        return
    if sys.stdout is None:
        raise UserError("--output: '-' is not allowed: standard output is closed")
    from dist_embed.observe.events import printable

    on_terminal = sys.stdout.isatty()
    yield lambda lines: write_out(
        _encoded([printable(line) for line in lines] if on_terminal else lines)
    )


def _put(file: Any, lines: list[str]) -> None:
    file.write(_encoded(lines))
    file.flush()


def _encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
