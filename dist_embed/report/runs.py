"""What a report shows of a run: read from its folder or URL, as far as it is there."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from dist_embed.checkpoint.catalogue import list_steps, loss_of, sound_manifests
from dist_embed.checkpoint.manifest import CheckpointError
from dist_embed.config.schema import Config
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.observe.events import printable
from dist_embed.parallel.collector import collector_off
from dist_embed.planning.phases import PlannedPhases, planned_phases
from dist_embed.report.columns import NOTHING, Column, columns_of
from dist_embed.report.words import Sentence, Words, recorded_neighbors, recorded_sentences
from dist_embed.run.folder import read_run_config
from dist_embed.run.history import phases_of
from dist_embed.run.metrics import sound_metrics
from dist_embed.storage import uri as storage
from dist_embed.storage.json_text import as_kind, from_json
from dist_embed.vectors.coverage import Coverage, coverage_name


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint that is there.

    Attributes:
        step: after which it was saved.
        time: when, Unix seconds.
        size_bytes: of its objects.
        loss: of its step's validation; None: it was not validated.
    """

    step: int
    time: float
    size_bytes: int
    loss: float | None


@dataclass(frozen=True)
class RunFigures:
    """What is known of a run.

    Attributes:
        name: short, different for each run of a page.
        uri: its folder or URL.
        config: its configuration.
        columns: its metrics, see `columns_of`.
        phases: seconds a step of each phase, see `phases_of`.
        planned: the same by a plan, where one was asked for.
        checkpoints: by step.
        coverages: what tables have taken of files of vectors.
        sentences: translations that it has recorded.
        words: whose neighbours are known, at which steps.
        missing: what is not there, and why, a line each.
    """

    name: str
    uri: str
    config: Config
    columns: dict[str, Column]
    phases: dict[str, float]
    planned: PlannedPhases | None
    checkpoints: list[Checkpoint]
    coverages: list[Coverage]
    sentences: list[Sentence]
    words: list[Words]
    missing: list[str]

    def column(self, name: str) -> Column:
        """A figure, or `NOTHING`."""
        return self.columns.get(name, NOTHING)

    @property
    def last_step(self) -> int:
        """After which it has told something."""
        return int(max((column.steps[-1] for column in self.columns.values()), default=0))


@collector_off()  # of many lines it takes half as long again
def read_run(
    uri: str, name: str, words: Sequence[str] = (), machine: str | None = None
) -> RunFigures:
    """Read what a run tells.

    Args:
        uri: its folder or URL.
        name: for the page.
        words: of the source side, whose neighbours are looked for in every checkpoint that is
            there. That reads the whole table of each. One that the run lacks is `missing`.
        machine: that its steps are planned for, by its name or file; None: they are not.

    Raises UserError where there is no run, or no such machine.
    """
    config = read_run_config(uri)
    missing: list[str] = []
    lines, damaged = sound_metrics(uri)
    columns = columns_of(lines)
    if damaged:
        missing.append(f"{_counted(damaged, 'line')} of its metrics damaged, and left out")
    checkpoints = _checkpoints(uri, missing)
    coverages = _coverages(uri, config, missing)
    known = recorded_neighbors(lines)
    if words:
        from dist_embed.report.checkpoint_words import neighbors_in_checkpoints

        known += neighbors_in_checkpoints(
            uri, [found.step for found in checkpoints], words, missing
        )  # fmt: skip
    run = RunFigures(
        name, uri, config, columns, phases_of(lines),
        planned_phases(config, machine) if machine else None, checkpoints, coverages,
        recorded_sentences(lines), known, missing,
    )  # fmt: skip
    missing += _not_there(run)
    return run


def names_of(uris: Sequence[str]) -> list[str]:
    """A short name for each run: the last part of its address, or where two have one all of it."""
    short = [posixpath.basename(uri.rstrip("/")) or uri for uri in uris]
    often = Counter(short)
    return [
        printable(name if often[name] == 1 else uri) for name, uri in zip(short, uris, strict=True)
    ]


def _not_there(run: RunFigures) -> list[str]:
    """What a page cannot show of it."""
    said = []
    if not run.columns:
        said.append("no metrics yet: nothing was logged")
    elif run.last_step < run.config.train.max_steps:
        times = run.column("time").values
        at = f", told at {moment(times[-1])}" if len(times) else ""
        said.append(f"not complete: step {run.last_step:,} of {run.config.train.max_steps:,}{at}")
    if run.columns:
        said += _not_recorded(run)
        if not run.phases:
            said.append("no phases: trained by an earlier version")
    if run.column("validation_bleu") is not NOTHING and not run.sentences:
        said.append("no sample translations: trained by an earlier version")
    skipped = run.column("skipped_steps").values
    if len(skipped) and skipped[-1]:
        said.append(f"{_counted(int(skipped[-1]), 'step')} skipped: loss or gradient not finite")
    return said


def _not_recorded(run: RunFigures) -> list[str]:
    """What of the validation set is not there, and why."""
    train, data = run.config.train, run.config.data
    held_out = data.validation or data.synthetic or data.inflected

    def why(name: str, every: int) -> str:
        first = min(every, train.max_steps)
        if not held_out:
            return "there is no validation set"
        if not every:
            return f"train.{name} is 0"
        if run.last_step < first:
            return f"the first is due after step {first:,}"
        return f"none was recorded by step {run.last_step:,}"

    wanted = [
        ("validation", "evaluate_every", len(run.column("validation_loss"))),
        ("BLEU", "translate_every", len(run.column("validation_bleu"))),
    ]
    if train.neighbors_of:
        found = sum(one.word in train.neighbors_of for one in run.words)
        wanted.append(("neighbours of train.neighbors_of", "translate_every", found))
    return [
        f"no {what}: {why(name, getattr(train, name))}" for what, name, found in wanted if not found
    ]


def _checkpoints(uri: str, missing: list[str]) -> list[Checkpoint]:
    try:
        if not list_steps(uri):
            missing.append("no checkpoint")
            return []
        found = sound_manifests(uri, missing.append)
    except CheckpointError as exc:
        missing.append(str(exc))
        return []
    return [
        Checkpoint(name.step, _seconds(one.created), one.size_bytes, loss_of(one))
        for name, one in sorted(found.items())
    ]


def _seconds(created: str) -> float:
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return float("nan")
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()


def _coverages(uri: str, config: Config, missing: list[str]) -> list[Coverage]:
    found = []
    for table in dict.fromkeys(TABLE_OF_ROLE[config.model.share_embeddings].values()):
        place = storage.join(uri, coverage_name(table))
        try:
            found.append(as_kind(Coverage, from_json(storage.read_bytes(place))))
        except FileNotFoundError:
            continue
        except ValueError as exc:
            missing.append(f"{coverage_name(table)} cannot be read: {exc}")
    return found


def moment(seconds: float) -> str:
    """A time of day, for people; nothing for what is none."""
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return ""


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
