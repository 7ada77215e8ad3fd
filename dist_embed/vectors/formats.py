"""Which format a file of vectors has, and what reads it."""

from __future__ import annotations

import re

from dist_embed.storage.first_bytes import PARQUET, ending_of, no_text
from dist_embed.vectors.arrays import ArrayVectors, is_safetensors
from dist_embed.vectors.fasttext_binary import MAGIC, FastTextBinary
from dist_embed.vectors.file import BYTE_ORDER_MARK, VectorFile, VectorFileError
from dist_embed.vectors.number_lines import NumberLines
from dist_embed.vectors.parquet import ParquetVectors
from dist_embed.vectors.settings import WITHOUT_WORDS, Format, PretrainedSection
from dist_embed.vectors.stream import open_stream, read_up_to
from dist_embed.vectors.text import TextVectors, are_numbers, parse_header
from dist_embed.vectors.word2vec_binary import Word2VecBinary

_LOOKED_AT = 2**14
_OF_NUMPY = b"\x93NUMPY"
_PICKLED = re.compile(rb"\x80[\x02-\x05]")
# What is not read: how such a file begins, and what is said of it.
_REFUSED = (
    (
        _PICKLED,
        "is pickled, as gensim's .kv and .model are, which can run code: it is not read; gensim "
        "writes what is: m = gensim.utils.SaveLoad.load(FILE); "
        "getattr(m, 'wv', m).save_word2vec_format('vectors.bin', binary=True)",
    ),
    (
        re.compile(rb"(\d+ ){6}< > ?\r?\n"),
        "is a table of floret, whose rows are no words but buckets of parts of words: it is not "
        "read; give the .vec file that floret writes beside it",
    ),
    (
        re.compile(rb"\x89HDF\r\n"),
        "is HDF5, which is not read; save its matrix with numpy.save, and its words one a line",
    ),
)
# A list of words that is JSON.
_JSON = re.compile(rb'\s*[\[{]\s*"[^"\n]*"\s*[,:\]]')


def open_file_of(settings: PretrainedSection) -> VectorFile | FastTextBinary:
    """`open_vectors` as a section of a configuration says."""
    return open_vectors(
        settings.uri,
        None if settings.format == "auto" else settings.format,
        words=settings.words,
        tensor=settings.tensor,
    )


def open_vectors(
    uri: str, format: Format | None, *, words: str | None = None, tensor: str | None = None
) -> VectorFile | FastTextBinary:
    """The reader of a file.

    Args:
        uri: the file, a local path or URL, see `dist_embed.vectors.stream`.
        format: None to find it out.
        words: list of words beside a matrix.
        tensor: which tensor of a safetensors file.

    Raises:
        VectorFileError: it cannot be read, or not as this format.
    """
    found = format or detect_format(uri, with_words=words is not None)
    if tensor is not None and found != "safetensors":
        raise VectorFileError(f"{uri}: tensor={tensor!r} is not allowed: this is {found}")
    if words is not None:
        file: VectorFile
        if found == "tsv":
            file = NumberLines(uri, words)
        elif found == "npy" or found == "safetensors":
            file = ArrayVectors(uri, found, words, tensor)
        else:
            raise VectorFileError(f"{uri}: a list of words belongs to a matrix, this is {found}")
        _check_list(words)
        return file
    if found in WITHOUT_WORDS:
        raise VectorFileError(f"{uri}: a matrix needs the list of its words beside it")
    if found == "fasttext-bin":
        return FastTextBinary(uri)
    if found == "word2vec-bin":
        return Word2VecBinary(uri)
    if found == "parquet":
        return ParquetVectors(uri)
    text = TextVectors(uri, has_header=found == "word2vec")
    if format is None and text.may_be_counts:
        raise VectorFileError(
            f"{uri}: has one number for each word, as a list of counts has, which is no file of "
            f"vectors; give `format: {found}` where it is one"
        )
    return text


def detect_format(uri: str, *, with_words: bool = False) -> Format:
    """The format of a file by its first bytes, and whether a list of words belongs to it.

    Raises VectorFileError: also of a file of a known kind that is not read.
    """
    with open_stream(uri, read_ahead=False) as file:
        head = read_up_to(file, _LOOKED_AT, uri)
    if not head:
        raise VectorFileError(f"{uri}: is empty")
    for begins, what in _REFUSED:
        if begins.match(head):
            raise VectorFileError(f"{uri}: {what}")
    if head.startswith(_OF_NUMPY):
        return "npy"
    if PARQUET.match(head):
        return "parquet"
    if head.startswith(MAGIC):
        return "fasttext-bin"
    if is_safetensors(head):
        return "safetensors"
    if other := no_text(head):
        raise VectorFileError(f"{uri}: {other}")
    if ending_of(head):
        raise VectorFileError(f"{uri}: is compressed twice: unpack it once")
    first, _, rest = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")
    second = rest.partition(b"\n")[0].split()[:-1]  # the last may be cut
    if with_words and are_numbers(first.split() + second):
        return "tsv"
    header = parse_header(first)
    if header is None:
        if _lack_words(head.split(b"\n")[:-1]):
            raise VectorFileError(
                f"{uri}: has lines of numbers alone; give the list of their words (`words`), or "
                "`format: glove` where the first number of a line is its word"
            )
        return "glove"
    return "word2vec" if _is_text(rest, header[1]) else "word2vec-bin"


def _lack_words(lines: list[bytes]) -> bool:
    """Whether ``lines`` are numbers alone. Not where all first ones are whole, or only first ones
    are: those are words, with which a sorted list begins.
    """
    cells = [line.split() for line in lines if line.strip()]
    first = [of_line[0] for of_line in cells]
    if len(first) < 2 or not are_numbers(first):
        return False
    are_whole = [one.isdigit() for one in first]
    others = any(one.isdigit() for of_line in cells for one in of_line[1:])
    return not all(are_whole) and (others or not any(are_whole))


def _check_list(uri: str) -> None:
    """Raise VectorFileError where a list of words is none, as far as its first bytes tell."""
    with open_stream(uri, read_ahead=False) as file:
        head = read_up_to(file, _LOOKED_AT, uri)
    what = no_text(head)
    if head.startswith(_OF_NUMPY) or _PICKLED.match(head):
        what = "is an array or pickled"
    elif _JSON.match(head):
        what = "is JSON"
    elif _are_counted(head.split(b"\n")[:-1]):
        what = "has a number behind each word"
    if what:
        raise VectorFileError(f"{uri}: {what}; a list of words is text in UTF-8, a word a line")


def _are_counted(lines: list[bytes]) -> bool:
    """Whether each of ``lines`` is a word and a number: behind a tab, or such as counts of words
    that are sorted by them.
    """
    cells = [line.rsplit(None, 1) for line in lines]
    if len(lines) < 2 or not all(len(one) == 2 and are_numbers(one[1:]) for one in cells):
        return False
    counts = [float(count) for _, count in cells]
    return all(b"\t" in line for line in lines) or counts == sorted(counts, reverse=True)


def _is_text(data: bytes, width: int) -> bool:
    """Whether the first line ends with ``width`` numbers; or ``data`` has no control characters,
    which binary numbers hardly do without, so that the reader of text names the line that is wrong.
    """
    line = b"." + data.partition(b"\n")[0]  # its word may be a control character, or none
    numbers = line.rsplit(None, min(width, len(data)))[1:]
    if len(numbers) == width and are_numbers(numbers):
        return True
    return not any(byte < 0x20 and byte not in b"\t\n\r" for byte in data)
