"""A run's metrics: ``metrics.jsonl``, one JSON object a line, and TensorBoard events.

Object stores cannot append. There the files grow in a local folder and are uploaded whole: when
`MetricsLog.flush` is called, at every checkpoint and at the end, and the lines every five minutes.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from dist_embed.errors import StorageError
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import from_json
from dist_embed.storage.local_file import named, regular_itself
from dist_embed.storage.retry import retrying_for
from dist_embed.storage.temporary import temporary_folder

METRICS_NAME = "metrics.jsonl"
WRITER_NAME = "metrics.writer"  # says whose the metrics at a URL are
EVERY_SECONDS = 300.0
LINES_SECONDS = 10.0  # that a store may be away meanwhile: a checkpoint's upload waits for this one
# What a line of a translation has beside its figures: some sentences, and words near some words.
SAMPLES, NEIGHBORS = "validation_samples", "validation_neighbors"
SAMPLE_KEYS = ("source", "reference", "translation")
Figure: TypeAlias = float | list[float] | list[int]
LIMIT = 2**53  # of integers: beyond it a float is not exact


class OtherWriter(StorageError):
    """Another command has begun to train the run, and the metrics at its URL are that one's."""


class MetricsLog:
    """Worker 0's writer. At a URL the one that began last writes, see `OtherWriter`.

    Args:
        run_uri: the run's folder or URL.
        after_step: lines of later steps are dropped: the run resumes there and repeats them.
        evaluates_again: what was found of the model of that step likewise.
    """

    def __init__(self, run_uri: str, after_step: int, *, evaluates_again: bool = False) -> None:
        from tensorboardX import SummaryWriter  # imports torch, which readers do without

        self._run_uri = run_uri
        self._staging: ExitStack | None = None
        self._uploads, self._has_ended = threading.Lock(), threading.Event()
        self._token = secrets.token_hex(8)
        if storage.is_local(run_uri):
            self._folder = storage.local_path(run_uri)
            storage.make_folder(self._folder)
        else:
            self._staging = ExitStack()
            folder = self._staging.enter_context(temporary_folder("dist_embed-metrics-"))
            self._folder = Path(folder)
            storage.write_text(storage.join(run_uri, WRITER_NAME), self._token)
        kept = [
            json.dumps(line)
            for line in read_metrics(run_uri)
            if line["step"] < after_step
            or (line["step"] == after_step and not (evaluates_again and _is_of_model(line)))
        ]
        path = self._folder / METRICS_NAME
        storage.write_text(str(path), "".join(f"{line}\n" for line in kept))
        self._path = path
        self._file = open(path, "a", opener=regular_itself)  # noqa: SIM115
        self._tensorboard = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=after_step + 1, flush_secs=30
        )
        if self._staging is not None:
            threading.Thread(target=self._upload_lines, name="metrics", daemon=True).start()

    def write(
        self,
        step: int,
        scored_by: str | None = None,
        samples: Sequence[Mapping[str, str]] = (),
        neighbors: Mapping[str, Sequence[tuple[str, float]]] | None = None,
        **values: Figure | None,
    ) -> None:
        """One line: the step, the time of day (Unix seconds) and what is not None.

        A list has a number, finite, for every worker; TensorBoard does not get it. ``samples`` have
        texts of some sentences by `SAMPLE_KEYS`, ``neighbors`` of some words the nearest with their
        cosine, ``scored_by`` says how translations were scored.
        """
        known = {name: value for name, value in values.items() if value is not None}
        # JSON has no NaN: a reader other than Python would refuse the line.
        line: dict[str, Any] = {
            name: value if isinstance(value, list) or math.isfinite(value) else None
            for name, value in known.items()
        }
        if scored_by is not None:
            line["scored_by"] = scored_by
        if samples:
            line[SAMPLES] = [dict(sample) for sample in samples]
        if neighbors:
            line[NEIGHBORS] = {word: list(near) for word, near in neighbors.items()}
        with named(self._path):
            self._file.write(
                json.dumps({"step": step, "time": round(time.time(), 3), **line}) + "\n"
            )
            self._file.flush()
        for name, value in known.items():
            if not isinstance(value, list):
                self._tensorboard.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was written visible at the run's URI. Raises OtherWriter."""
        self._tensorboard.flush()
        if self._staging is not None:
            self._upload(path for path in self._folder.rglob("*") if path.is_file())

    def _upload(self, paths: Iterable[Path]) -> None:
        with self._uploads:  # an older text would replace a newer one
            with suppress(FileNotFoundError):  # somebody has tidied up
                if storage.read_text(storage.join(self._run_uri, WRITER_NAME)) != self._token:
                    raise OtherWriter(f"another command trains {self._run_uri}, whose metrics stay")
            for path in paths:
                name = path.relative_to(self._folder).as_posix()
                storage.write_bytes(storage.join(self._run_uri, name), path.read_bytes())

    def _upload_lines(self) -> None:
        while not self._has_ended.wait(EVERY_SECONDS):
            try:
                with retrying_for(LINES_SECONDS):
                    self._upload([self._path])
            except Exception:  # a checkpoint tells of it, and of nothing that has passed
                logging.getLogger(__name__).warning("metrics are not uploaded", exc_info=True)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._has_ended.set()
        self._tensorboard.close()
        self._file.close()
        # An error that ends the run is told, not that of the store that it may have come from.
        with suppress(Exception if kind else OtherWriter):
            self.flush()
        if self._staging is not None:
            self._staging.close()


def _is_of_model(line: dict[str, Any]) -> bool:
    """Whether a line is of a validation or translation."""
    return any(name.startswith("validation_") for name in line)


def read_metrics(run_uri: str) -> list[dict[str, Any]]:
    """All lines of a run's metrics; none where there are none yet. Damaged ones are left out."""
    return sound_metrics(run_uri)[0]


def sound_metrics(run_uri: str) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics, and how many were left out as damaged: those that are no JSON
    object with a step. A torn last line is none: a run writes it just now, or was killed in it.
    """
    try:
        data = storage.read_bytes(storage.join(run_uri, METRICS_NAME))
    except FileNotFoundError:
        return [], 0
    texts = data.split(b"\n")
    lines, damaged = [], 0
    for number, text in enumerate(texts, start=1):
        try:
            line = from_json(text)
        except ValueError:  # of bytes that are no UTF-8 too
            line = None
        step = line.get("step") if isinstance(line, dict) else None
        if type(step) is int and is_number(step):
            lines.append(line)
        elif number < len(texts):
            damaged += 1
    return lines, damaged


def is_number(value: Any) -> TypeGuard[float]:
    """Whether what a line has can be reckoned with: no text, no integer beyond those of floats."""
    return type(value) is float or (type(value) is int and abs(value) < LIMIT)


def figure(line: Mapping[str, Any], name: str) -> float | None:
    """A finite figure of a line; None where the line has none of that name."""
    value = line.get(name)
    return value if is_number(value) and math.isfinite(value) else None


def figures(lines: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """The finite figures of that name, of the lines that have one."""
    return [value for line in lines if (value := figure(line, name)) is not None]
