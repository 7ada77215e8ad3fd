"""Which format a file of vectors has, and what reads it."""

from __future__ import annotations

from dist_embed.vectors.arrays import ArrayVectors, is_safetensors
from dist_embed.vectors.fasttext_binary import MAGIC, FastTextBinary
from dist_embed.vectors.file import BYTE_ORDER_MARK, VectorFile, VectorFileError
from dist_embed.vectors.settings import Format
from dist_embed.vectors.stream import open_stream, read_up_to
from dist_embed.vectors.text import TextVectors, parse_header
from dist_embed.vectors.word2vec_binary import Word2VecBinary

_LOOKED_AT = 2**14


def open_vectors(
    uri: str, format: Format | None, *, words: str | None = None, tensor: str | None = None
) -> VectorFile | FastTextBinary:
    """The reader of a file.

    Args:
        uri: the file, a local path or URL; decompressed by its ending.
        format: None to find it out.
        words: list of words beside a matrix.
        tensor: which tensor of a safetensors file.

    Raises:
        VectorFileError: it cannot be read, or not as this format.
    """
    found = format or detect_format(uri)
    if found == "npy" or found == "safetensors":
        if words is None:
            raise VectorFileError(f"{uri}: a matrix needs the list of its words beside it")
        return ArrayVectors(uri, found, words, tensor)
    if words is not None:
        raise VectorFileError(f"{uri}: a list of words belongs to a matrix, this is {found}")
    if found == "fasttext-bin":
        return FastTextBinary(uri)
    if found == "word2vec-bin":
        return Word2VecBinary(uri)
    return TextVectors(uri, has_header=found == "word2vec")


def detect_format(uri: str) -> Format:
    """The format of a file by its first bytes. Raises VectorFileError."""
    with open_stream(uri, read_ahead=False) as file:
        head = read_up_to(file, _LOOKED_AT, uri)
    if not head:
        raise VectorFileError(f"{uri}: is empty")
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(MAGIC):
        return "fasttext-bin"
    if is_safetensors(head):
        return "safetensors"
    first, _, rest = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")
    if parse_header(first) is None:
        return "glove"
    return "word2vec" if _is_text(rest) else "word2vec-bin"


def _is_text(data: bytes) -> bool:
    """Whether ``data`` has no control characters, which binary numbers hardly do without.

    Whether its lines have as many numbers as the header says is not asked: where they have not,
    the reader of text names the line.
    """
    return not any(byte < 0x20 and byte not in b"\t\n\r" for byte in data)
