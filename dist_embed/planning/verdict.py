"""A plan with what would change what limits it, each with what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.planning.estimate import Plan, Remedy, estimated, step_of
from dist_embed.planning.machine import Machine, load_machine, usual_machine
from dist_embed.planning.step import Step
from dist_embed.planning.text import text_of

_MOST_WORKERS = 4096
_COUNTS = 0.05  # of memory or speed: changes that give less are not named
_NAMED = 5
# Of the most frequent words: numbers of rows that a replicated head is tried with.
_HEADS = (64, 256, 1024, 4096, 16384)


def plan(config: Config, workers: int, machine: Machine | None = None) -> Plan:
    """Plan a run with so many workers.

    Args:
        config: of the run; prepared data are asked where there are any.
        workers: W, whatever the configuration has.
        machine: None: `usual_machine`.

    Raises:
        UserError: there cannot be so many workers.
    """
    machine = machine or load_machine(usual_machine(config))
    step = step_of(config, workers, machine, text_of(config))
    found = estimated(step)
    return replace(found, remedies=remedies(found, step), not_built=_not_built(step))


def remedies(found: Plan, step: Step) -> list[Remedy]:
    """Changes that make it fit, or less large; where it fits, that make it faster. The best ones.

    More workers come first where memory is what lacks: the fewest, by doubling, that suffice.
    """
    tried = [_tried(change, step) for change in _changes(step.config, step)]
    known = [one for one in tried if one is not None]
    if found.fits:
        faster = [
            one
            for one in known
            if one.fits and one.tokens_per_second > (1 + _COUNTS) * found.tokens_per_second
        ]
        return sorted(faster, key=lambda one: -one.tokens_per_second)[:_NAMED]

    def taken(one: Plan | Remedy) -> int:  # of what lacks
        return one.host_memory_bytes if found.lacking == "host" else one.memory_bytes

    smaller = [one for one in known if one.fits or taken(one) < (1 - _COUNTS) * taken(found)]
    smaller.sort(key=lambda one: (not one.fits, taken(one)))
    return [*_more_workers(step), *smaller[:_NAMED]]


@dataclass(frozen=True)
class _Change:
    """Values of keys of one section."""

    section: str
    values: dict[str, Any]

    def __str__(self) -> str:
        return " ".join(f"{self.section}.{key}={value}" for key, value in self.values.items())

    def of(self, config: Config) -> Config:
        section = getattr(config, self.section).model_copy(update=self.values)
        return config.model_copy(update={self.section: section})


def _changes(config: Config, step: Step) -> Iterator[_Change]:
    embedding, train = config.embedding, config.train
    if config.model.output == "exact":
        yield _Change("model", {"output": "sampled"})
    checkpoint = config.checkpoint
    for key in ("every_steps", "every_minutes"):
        if getattr(checkpoint, key):
            yield _Change("checkpoint", {key: 10 * getattr(checkpoint, key)})
    if checkpoint.saving != "behind":
        yield _Change("checkpoint", {"saving": "behind"})
    if checkpoint.saving != "in_place":
        yield _Change("checkpoint", {"saving": "in_place"})
    if embedding.optimizer in ("adagrad", "adam"):
        yield _Change("embedding", {"optimizer": "rowwise_adagrad"})
    if embedding.width >= 8:
        yield _Change("embedding", {"width": embedding.width // 2})
    yield _Change("train", {"accumulate": 2 * train.accumulate})
    if train.clip_norm:
        yield _Change("train", {"clip_norm": 0.0})
    yield _Change("train", {"batch_tokens": 2 * train.batch_tokens})
    if step.machine.device == "cuda":
        if embedding.weights == "fp32":
            yield _Change("embedding", {"weights": "fp16"})
        if embedding.exchange == "fp32":
            yield _Change("embedding", {"exchange": "bf16"})
        if embedding.memory == "device":
            yield _Change("embedding", {"memory": "auto"})
    if train.precision == "fp32" and step.machine.narrow_is_native:
        yield _Change("train", {"precision": "bf16"})


def _tried(change: _Change, step: Step) -> Remedy | None:
    try:
        changed = step_of(change.of(step.config), step.workers, step.machine, step.text)
        return _remedy(str(change), estimated(changed))
    except UserError:  # it cannot be combined with the rest
        return None


def _more_workers(step: Step) -> Iterator[Remedy]:
    workers = 2 * step.workers
    while workers <= _MOST_WORKERS:
        try:
            found = estimated(step_of(step.config, workers, step.machine, step.text))
        except UserError:  # more than there are rows
            return
        if found.fits:
            yield _remedy(f"cluster.num_workers={workers}", found)
            return
        workers *= 2


def _not_built(step: Step) -> list[Remedy]:
    if step.workers == 1:
        return []
    apart = estimated(replace(step, parts_of_data=step.workers))
    return [_replicated_head(step), _remedy("each worker plans its part of the batches", apart)]


def _replicated_head(step: Step) -> Remedy:
    """The best of some numbers of rows that every worker has, so that nobody is asked for them.

    Their gradients are summed over all workers in every step, and each updates them all.
    """
    tried = [(rows, estimated(replace(step, head=rows))) for rows in _HEADS]
    rows, found = max(tried, key=lambda one: (one[1].fits, one[1].tokens_per_second))
    return _remedy(f"the {rows:,} most frequent rows of each table on every worker", found)


def _remedy(change: str, found: Plan) -> Remedy:
    return Remedy(
        change, found.memory_bytes, found.host_memory_bytes, found.step_seconds,
        found.tokens_per_second, found.fits,
    )  # fmt: skip
