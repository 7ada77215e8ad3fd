"""The files that prepared data were made from, and whether they are still the same ones.

A file is known by its size, its time and a SHA-256 digest of its bytes as stored. One with the same
name, size and time counts as unchanged without being read; otherwise the digest decides, so that
one that was moved or copied is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dist_embed.data.corpus import ParallelText, expand
from dist_embed.data.text.rows import CorpusError
from dist_embed.errors import StorageError, UserError
from dist_embed.observe.events import Watch, unwatched
from dist_embed.storage import uri as storage
from dist_embed.storage.compressed import OPEN_ERRORS, READ_ERRORS

# Reading so much takes seconds, of which something is said.
_LARGE_BYTES = 2**30
_ERRORS = (StorageError, *OPEN_ERRORS, *READ_ERRORS)  # a file may lie in an archive
# Files that a message names.
_MOST_NAMED = 3


@dataclass(frozen=True)
class InputFile:
    """A file of a corpus as it was when it was read.

    Attributes:
        uri: where it lay.
        size_bytes: its size, compressed or not; None where its server does not say.
        modified: its time, as its file system gives it; None: it gives none.
        sha256: digest of its bytes as stored, in hex.
    """

    uri: str
    size_bytes: int | None
    modified: float | str | None
    sha256: str


# "train.source" to its files in the order in which they are read.
Inputs = dict[str, list[InputFile]]


@dataclass
class Comparison:
    """What the files of a configuration are, beside those that data were prepared from.

    Attributes:
        changed: a line for each difference in content.
        absent: a line for each file or pattern that nothing is known of.
        copied: files with the same content, but another name or time.
        now: what is recorded, with the names and times of now.
    """

    changed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    now: Inputs = field(default_factory=dict)


def record_inputs(
    corpora: dict[str, ParallelText], say: Callable[[str], None], watch: Watch = unwatched
) -> Inputs:
    """Read the files of ``corpora`` once for their digests; ``watch`` shows how far. Raises
    CorpusError.
    """
    looked_at = [
        (part, uri, _stamp(uri)) for part, patterns in _parts(corpora) for uri in expand(patterns)
    ]
    large = sum(stamp.size_bytes or 0 for _, _, stamp in looked_at)
    if large >= _LARGE_BYTES:
        say(f"taking digests of {len(looked_at):,} files, {large / 2**30:.1f} GiB")
    inputs: Inputs = {part: [] for part, _ in _parts(corpora)}
    for part, uri, stamp in looked_at:
        try:
            digest = _digest(uri, watch)
        except _ERRORS as exc:
            raise CorpusError(f"cannot read {uri}: {exc}") from exc
        inputs[part].append(InputFile(uri, stamp.size_bytes, stamp.modified, digest))
    return inputs


def check_unchanged(inputs: Inputs) -> None:
    """Look whether the files are what they were when they were recorded, by size and time.

    Raises:
        CorpusError: one was changed while it was read, so that nobody knows what was.
    """
    for file in (file for files in inputs.values() for file in files):
        if _stamp(file.uri) != storage.Stamp(file.size_bytes, file.modified):
            raise CorpusError(f"{file.uri} was changed while data were prepared from it")


def compare_inputs(
    recorded: Inputs,
    corpora: dict[str, ParallelText],
    say: Callable[[str], None],
    watch: Watch = unwatched,
) -> Comparison:
    """Compare the files of ``corpora`` with the recorded ones, file by file in their order.

    Reads only files whose name, size or time is another one, or whose file system keeps no times;
    ``say`` takes a line before a large one, ``watch`` shows how far it is.
    """
    found = Comparison(now={part: list(files) for part, files in recorded.items()})
    for part, patterns in _parts(corpora):
        there = recorded.get(part, [])
        here = _files(patterns, found)
        if None in here and len(here) != len(there):
            continue  # which of them are not there nobody can tell
        if len(here) != len(there):
            found.changed.append(_other_files(part, there, here))
            continue
        for place, uri in enumerate(here):
            _compare(part, place, uri, found, say, watch)
    return found


def _parts(corpora: dict[str, ParallelText]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for split, text in corpora.items():
        for key, patterns in (
            ("source", text.source), ("target", text.target), ("pairs", text.pairs)
        ):  # fmt: skip
            if patterns:
                yield f"{split}.{key}", patterns


def _files(patterns: tuple[str, ...], found: Comparison) -> list[str | None]:
    files: list[str | None] = []
    for pattern in patterns:
        try:
            files += expand((pattern,))
        except (UserError, OSError) as exc:
            found.absent.append(str(exc))
            files.append(None)
    return files


def _compare(
    part: str,
    place: int,
    uri: str | None,
    found: Comparison,
    say: Callable[[str], None],
    watch: Watch,
) -> None:
    """Note whether a file has the content of the recorded one at its place."""
    if uri is None:
        return
    there = found.now[part][place]
    try:
        stamp = storage.stamp(uri)
        if (
            None not in (stamp.size_bytes, there.size_bytes)
            and stamp.size_bytes != there.size_bytes
        ):
            found.changed.append(
                f"{uri}: {there.size_bytes:,} bytes when it was prepared, {stamp.size_bytes:,} now"
            )
            return
        known = stamp == storage.Stamp(there.size_bytes, there.modified)
        if known and stamp.modified is not None and uri == there.uri:
            return
        if (stamp.size_bytes or 0) >= _LARGE_BYTES:
            say(f"reading {uri} to see whether it has changed")
        digest = _digest(uri, watch)
    except _ERRORS as exc:
        gone = isinstance(exc, FileNotFoundError)
        found.absent.append(f"{uri} is not there" if gone else f"cannot read {uri}: {exc}")
        return
    if digest != there.sha256:
        found.changed.append(f"{uri}: other content than when it was prepared")
        return
    found.now[part][place] = InputFile(uri, stamp.size_bytes, stamp.modified, digest)
    if found.now[part][place] != there:
        found.copied.append(uri)


def _digest(uri: str, watch: Watch) -> str:
    name = uri.rpartition("/")[2]
    return storage.sha256_of(
        uri, lambda blocks: watch(f"taking the digest of {name}", blocks, "MiB")
    )


def _other_files(part: str, there: list[InputFile], here: list[str | None]) -> str:
    before, now = {file.uri for file in there}, {uri for uri in here if uri}
    named = [
        f"{what}: {', '.join(sorted(files)[:_MOST_NAMED])}"
        + (f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else "")
        for what, files in (("new", now - before), ("gone", before - now))
        if files
    ]
    return (
        f"data.{part}: {len(there)} files when it was prepared, {len(here)} now "
        f"({'; '.join(named) or 'the same ones'})"
    )


def _stamp(uri: str) -> storage.Stamp:
    try:
        return storage.stamp(uri)
    except _ERRORS as exc:
        raise CorpusError(f"cannot read {uri}: {exc}") from exc
