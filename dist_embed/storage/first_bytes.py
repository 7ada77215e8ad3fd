"""What a file is by its first bytes, whatever it is called."""

from __future__ import annotations

import re

# What compressed files begin with, and the ending that they should have.
_ENDINGS = {
    b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\0": ".xz", b"PK\x03\x04": ".zip",
    b"PK\x05\x06": ".zip", **{b"BZh%d1AY&SY" % size: ".bz2" for size in range(1, 10)},
    # Frames that are skipped, as pzstd puts one before each other.
    **{bytes([first]) + b"\x2a\x4d\x18": ".zst" for first in range(0x50, 0x60)},
}  # fmt: skip

# How Parquet begins; PAR1 alone is the name of a protein, too.
PARQUET = re.compile(rb"PAR1[\0-\x08\x0e-\x1f]")

# How files begin that are no text in UTF-8, or stand for another, and what is said of them.
_NO_TEXT = (
    (
        # With a mark of the byte order, or as text in Latin letters is without one.
        re.compile(rb"\xff\xfe|\xfe\xff|(?:[^\0]\0){2}|(?:\0[^\0]){2}|\0\0\xfe\xff"),
        "is in UTF-16 or UTF-32, and UTF-8 is expected: iconv -f UTF-16 -t UTF-8",
    ),
    (re.compile(rb"\0{8}"), "begins with zeros, as where its content was lost"),
    (
        re.compile(rb"(?s).{257}ustar *\0"),
        "is a tar archive; name the file in it, as tar://NAME::ARCHIVE.tar.gz",
    ),
    (
        re.compile(rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x04\x22M\x18|\x1f\x9d|\xff\x06\0\0sNaPpY"),
        "is packed by 7-Zip, RAR, LZ4, compress or Snappy, which is not read: unpack it; gzip, "
        "zstd, bzip2, xz and zip are read",
    ),
    (
        re.compile(rb"(?s)PK\x03\x04.{26}\[Content_Types\]\.xml"),
        "is a document of an office program: save it as CSV in UTF-8",
    ),
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec/"),
        "is a pointer of Git LFS, and not the file it stands for: git lfs pull",
    ),
    (
        re.compile(rb"/annex/objects/"),
        "is a pointer of git-annex, and not the file it stands for: git annex get",
    ),
    (
        re.compile(rb"(?s)ARROW1\0\0|\xff{4}.{3}\0"),
        "is Arrow's, which is not read: write it as Parquet",
    ),
)
# The same of what is such text, but of neither sentences nor vectors.
_MARKUP = (
    (
        re.compile(rb"(?i)\s*<(?:!doctype html|html\b[^>]*>\s*(?:<|\Z))"),
        "is a web page, as servers send in place of a file",
    ),
    (
        re.compile(rb"(?i)\s*<(?:\?xml|srcset|refset|tstset)\b"),
        "is XML or SGML, of which TMX alone is read, in files whose names end in .tmx: take the "
        "sentences out",
    ),
)


def ending_of(head: bytes) -> str | None:
    """The ending that belongs to a file which is compressed, as its first bytes show; None: it is
    not.
    """
    return next((end for first, end in _ENDINGS.items() if head.startswith(first)), None)


def no_text(head: bytes, *, markup: bool = False) -> str | None:
    """What is wrong with a file that should be lines of text in UTF-8; None: nothing that its first
    bytes show.

    Args:
        head: its first bytes: as many as are looked at, or its first line.
        markup: web pages and XML are such text.
    """
    text = head.removeprefix(b"\xef\xbb\xbf")  # Windows' mark
    for begins, what in _NO_TEXT if markup else _NO_TEXT + _MARKUP:
        if begins.match(text):
            return what
    # A single one is part of the text, or ends it.
    if b"\n" not in head and head.count(b"\r") > 1 and b"\r" in head.rstrip(b"\r"):
        return "has lines that end with CR alone, and LF is expected: tr '\\r' '\\n'"
    return None
