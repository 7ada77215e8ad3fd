"""`dist_embed.open_run`: a trained run to look at, from one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from dist_embed.api.given import run_given, texts_given
from dist_embed.api.inference import config_to_use, translate
from dist_embed.arguments import whole_number
from dist_embed.cluster.settings import LauncherChoice
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.model.settings import ReplaceUnknown, TooLong
from dist_embed.observe.events import Event
from dist_embed.run.folder import read_run_config
from dist_embed.storage import uri as storage
from dist_embed.training.results import Translations

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dist_embed.explore.table import Role, RunTable
    from dist_embed.export.embeddings import ExportFormat


def open_run(uri: str | PathLike[str]) -> TrainedRun:
    """A trained run in a folder or at any fsspec URL. Raises UserError where there is none."""
    return TrainedRun(run_given(uri))


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint.

    Attributes:
        step: after which it was saved.
        created: when, UTC.
        num_workers: that have saved it.
        size_bytes: of its objects.
        validation_loss: of its step; None: it was not validated.
    """

    step: int
    created: str
    num_workers: int
    size_bytes: int
    validation_loss: float | None


class TrainedRun:
    """A run that was trained, or is being trained. What is asked for is read then.

    Attributes:
        uri: the run's folder or URL.
        config: as it was trained.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.config: Config = read_run_config(uri)

    def __repr__(self) -> str:
        return f"open_run({self.uri!r})"

    def metrics(self) -> pa.Table:
        """What was measured, a row for each line of ``metrics.jsonl``, null where a line has
        nothing of a column: ``step``, ``time`` (Unix seconds), ``loss``, ``tokens_per_second``,
        ``validation_loss``, … As pandas has it: ``run.metrics().to_pandas()``.

        Raises UserError where a column has values of several kinds, which no run writes.
        """
        import pyarrow as pa

        from dist_embed.run.metrics import METRICS_NAME, read_metrics

        lines = read_metrics(self.uri)
        columns = {}
        for name in dict.fromkeys(name for line in lines for name in line):
            try:
                columns[name] = pa.array([line.get(name) for line in lines])
            except (pa.ArrowException, OverflowError, UnicodeError) as exc:
                uri = storage.join(self.uri, METRICS_NAME)
                raise UserError(f"{uri} is damaged: {name!r} has no column: {exc}") from exc
        return pa.table(columns)

    def checkpoints(self) -> list[CheckpointInfo]:
        """The complete checkpoints, by step. Of damaged ones it is told on stderr."""
        from dist_embed.checkpoint.catalogue import list_steps, loss_of, sound_manifests

        if not list_steps(self.uri):
            return []
        return [
            CheckpointInfo(
                name.step, found.created, found.num_workers, found.size_bytes, loss_of(found)
            )
            for name, found in sorted(sound_manifests(self.uri).items())
        ]

    def table(
        self, role: Role = "source", *, step: int | None = None, untrained: bool = False
    ) -> WordVectors:
        """The vectors of one side, of one checkpoint.

        Args:
            role: the encoder's input (``source``), the decoder's (``target``) or the ``output``
                layer's.
            step: of the checkpoint; None: the one with the lowest validation loss.
            untrained: take words too that never occur in training on a side that has this table.

        Raises UserError where there is no such checkpoint.
        """
        from dist_embed.explore.table import RunTable

        return WordVectors(RunTable(self.uri, role, step, untrained=untrained))

    def translate(
        self,
        lines: Iterable[str],
        *,
        step: int | None = None,
        workers: int | None = None,
        beam: int | None = None,
        candidates: int | Literal["auto"] | None = None,
        replace_unknown: ReplaceUnknown | None = None,
        max_source_tokens: int | None = None,
        too_long: TooLong | None = None,
        launcher: LauncherChoice = "local",
        on_event: Callable[[Event], None] | None = None,
    ) -> Translations:
        """Translate lines of text; see `translate`, and of the settings `config_to_use`."""
        config = config_to_use(
            self.uri, workers=workers, beam=beam, candidates=candidates,
            replace_unknown=replace_unknown, max_source_tokens=max_source_tokens,
            too_long=too_long,
        )  # fmt: skip
        return translate(config, lines, step=step, launcher=launcher, on_event=on_event)


class WordVectors:
    """The words of one side of a run and their vectors, read when asked for.

    The table may be larger than memory: what looks at all of it reads it strip by strip.
    """

    def __init__(self, table: RunTable) -> None:
        self._table = table

    def __repr__(self) -> str:
        table = self._table
        return f"{len(self):,} {table.role} words × {self.width} of step {self.step}"

    def __len__(self) -> int:
        return self._table.num_words

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self._table.find_word(word) is not None

    @property
    def width(self) -> int:
        """D."""
        return self._table.width

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self._table.step

    def neighbors(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words with the highest cosine to one, with it. Raises UserError for a word that is
        not known, or untrained.
        """
        from dist_embed.explore.nearest import neighbors

        return neighbors(self._table, [_word(word)], whole_number("count", count, 1))[word]

    def analogy(self, a: str, b: str, c: str, count: int = 10) -> list[tuple[str, float]]:
        """A is to B as C is to which words? With their cosine; see `explore.nearest.analogy`.
        Raises as `neighbors`.
        """
        from dist_embed.explore.nearest import analogy

        words = _word(a, "a"), _word(b, "b"), _word(c, "c")
        return analogy(self._table, *words, whole_number("count", count, 1))

    def vectors(self, words: Iterable[str]) -> NDArray[np.float32]:
        """[n, D] the vectors of some words, as they are. Raises as `neighbors`."""
        found: NDArray[np.float32] = self._table.rows_of(
            [self._table.trained_id_of(word) for word in texts_given(words, "words")]
        ).numpy()
        return found

    def frequent_words(self, count: int) -> list[str]:
        """The most frequent words of the side, most frequent first, without special tokens."""
        ids = self._table.frequent_ids(whole_number("count", count, 0))
        return [self._table.word(i) for i in ids]

    def export(self, output: str | PathLike[str], format: ExportFormat) -> list[str]:
        """Write all words and vectors into a file: `dist_embed.export.embeddings`.

        Args:
            output: a path, in a folder that is there; a URL for other formats than safetensors.
            format: ``word2vec``, ``word2vec-bin``, ``glove``, ``safetensors`` or ``parquet``.

        Returns the files written. Raises UserError.
        """
        from dist_embed.export.embeddings import export_embeddings

        return export_embeddings(self._table, storage.given(output, "output"), format)


def _word(given: Any, name: str = "word") -> str:
    if not isinstance(given, str):
        raise UserError(f"{name}: {given!r} is not allowed: one word, as str")
    return given
