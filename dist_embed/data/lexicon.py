"""A bilingual lexicon: for every source word its likeliest translations.

It is learned from the training pairs by `dist_embed.data.lexicon_learning`, and lies in parts: a
part has the source words with the same remainder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dist_embed.data.proof import FileInfo, read_proven, read_table, sealed, unsealed
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.errors import StorageError, UserError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import Count, as_kind, from_json

FORMAT = 2
UNPROVEN_FORMAT = 1  # without digests
FOLDER = "lexicon"
INDEX_NAME = "lexicon.json"
FREQUENT_NAME = "frequent.parquet"


@dataclass(frozen=True)
class LexiconIndex:
    """What ``lexicon.json`` says, written last.

    Attributes:
        translations: K', most translations of a source word.
        entries: pairs in all parts.
        parts: number of Parquet files; that of source word s is s modulo parts.
        data: digest of the prepared data that it was learned from.
        files: what proves the parts, in their order; none in the format before.
        tokenizers: by side the SHA-256 of that whose ids it holds; none where that is not known.
        frequent: what proves the list of target words; None: there is none, as the target's ids are
            ordered by frequency where its vocabulary is its own, and before there were lists.
    """

    translations: Count
    entries: Count
    parts: Annotated[int, Field(ge=1, lt=2**31)]
    data: str
    format: int = FORMAT
    files: tuple[FileInfo, ...] = ()
    tokenizers: dict[str, str] = field(default_factory=dict)
    frequent: FileInfo | None = None

    def to_json(self) -> str:
        """The content of ``lexicon.json``."""
        return sealed(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LexiconIndex:
        """Read it. Raises ValueError, KeyError, TypeError, AttributeError."""
        values = from_json(text)
        found = values.get("format")
        if found == UNPROVEN_FORMAT:
            return as_kind(cls, values)
        if found != FORMAT:
            raise ValueError(f"format {found!r}; this version reads {FORMAT}")
        index = as_kind(cls, unsealed(text))
        if len(index.files) != index.parts:
            raise ValueError(f"parts: {index.parts} of which {len(index.files)} are listed")
        return index


class Lexicon:
    """A learned lexicon below a data or run folder.

    Raises FileNotFoundError where there is none, UserError where it cannot be read.
    """

    def __init__(self, folder_uri: str) -> None:
        self._uri = storage.join(folder_uri, FOLDER)
        self._remedy = (
            f"remove {self._uri} and call `dist-embed train` with the run's configuration, which "
            "learns it again or copies it there"
        )
        uri = storage.join(self._uri, INDEX_NAME)
        content = storage.read_bytes(uri)  # a store that fails is a ValueError, and no damage
        try:
            self._text = content.decode()
            self.index = LexiconIndex.from_json(self._text)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UserError(
                f"{uri} cannot be read ({type(exc).__name__}: {exc}); {self._remedy}"
            ) from exc

    def translations(
        self, source_ids: NDArray[np.int64], most: int
    ) -> dict[int, NDArray[np.int32]]:
        """Target ids by association, strongest first, at most ``most`` for each of ``source_ids``.

        Words without any are left out. Reads only the parts that hold the words. Raises UserError.
        """
        found: dict[int, NDArray[np.int32]] = {}
        ids = np.unique(source_ids)
        for part in np.unique(ids % self.index.parts).tolist():
            sources, targets = self._read(part)
            wanted = ids[ids % self.index.parts == part]
            first = np.searchsorted(sources, wanted)
            last = np.searchsorted(sources, wanted, side="right")
            for word, start, end in zip(wanted.tolist(), first, last, strict=True):
                if end > start:
                    found[word] = targets[start : min(end, start + most)]
        return found

    def frequent_targets(self) -> NDArray[np.int64] | None:
        """Special tokens, then the target ids that stand in most target sentences first, without
        those that stand in none; None where there is no such list. Raises UserError.
        """
        if self.index.frequent is None:
            return None
        table = read_table(
            storage.join(self._uri, FREQUENT_NAME), ["target"], self.index.frequent,
            what="list of frequent words", remedy=self._remedy,
        )  # fmt: skip
        ids: NDArray[np.int64] = table.column("target").to_numpy().astype(np.int64)
        return ids

    def check_tokenizers(self, tokenizers: dict[str, Tokenizer]) -> None:
        """Raises UserError where it says that its ids are those of other tokenizers."""
        for side, digest in self.index.tokenizers.items():
            if tokenizers[side].json_digest != digest:
                raise UserError(
                    f"the lexicon {self._uri} was learned with another {side} tokenizer: its ids "
                    f"stand for other words; {self._remedy}"
                )

    def copy_to(self, folder_uri: str) -> None:
        """Copy it below another folder, the index last. Raises UserError."""
        folder = storage.join(folder_uri, FOLDER)
        files = [(part_name(part), self._proof(part)) for part in range(self.index.parts)]
        if self.index.frequent:
            files.append((FREQUENT_NAME, self.index.frequent))
        for name, proof in files:
            content = read_proven(storage.join(self._uri, name), proof, self._remedy)
            storage.write_bytes(storage.join(folder, name), content)
        storage.write_text(storage.join(folder, INDEX_NAME), self._text)

    def _proof(self, part: int) -> FileInfo | None:
        return self.index.files[part] if self.index.files else None

    def _read(self, part: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        table = read_table(
            storage.join(self._uri, part_name(part)), ["source", "target"], self._proof(part),
            what="lexicon part", remedy=self._remedy,
        )  # fmt: skip
        return table.column("source").to_numpy(), table.column("target").to_numpy()


def part_name(part: int) -> str:
    """Of the file with the translations of one part of the source words."""
    return f"part-{part:05d}.parquet"


def fitting_lexicon(data_uri: str, data: PreparedData, translations: int) -> LexiconIndex | None:
    """What is said of the lexicon of prepared data, if it is one of these, with so many
    translations; one that cannot be read is none.
    """
    try:
        index = Lexicon(data_uri).index
    except StorageError:  # unknown, not damaged
        raise
    except (FileNotFoundError, UserError):
        return None
    return index if (index.translations, index.data) == (translations, data.digest()) else None
