"""How `ShardedTables` is built: values that are allowed, and the same on all workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import zip_longest

from dist_embed.arguments import one_of, real_number, whole_number
from dist_embed.embedding.settings import Exchange, Memory, Weights
from dist_embed.embedding.table import Table
from dist_embed.embedding.tables import EXCHANGES, KERNELS, OPTIMIZERS, WEIGHT_TYPES
from dist_embed.errors import UserError
from dist_embed.parallel.collectives import gather_texts
from dist_embed.parallel.group import Group


@dataclass(frozen=True)
class Options:
    """Of these names, see `ShardedTables`."""

    optimizer: str
    learning_rate: float
    eps: float
    seed: int
    memory: Memory
    weights: Weights
    exchange: Exchange
    step_bytes: int

    def checked(self) -> Options:
        """The same, numbers as Python has them. Raises UserError for what is not allowed."""
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("memory", self.memory, ("auto", *KERNELS))
        one_of("weights", self.weights, WEIGHT_TYPES)
        one_of("exchange", self.exchange, EXCHANGES)
        return replace(
            self,
            learning_rate=real_number("learning_rate", self.learning_rate),
            eps=real_number("eps", self.eps),
            seed=whole_number("seed", self.seed, 0),
            step_bytes=whole_number("step_bytes", self.step_bytes, 0),
        )


def require_equal(tables: Mapping[str, Table], options: Options, group: Group) -> None:
    """Raise UserError on all workers where one has others than worker 0. Collective."""
    if group.num_workers == 1:
        return
    lines = [f"table {name!r}: {table}" for name, table in tables.items()]
    lines += [f"{field.name}: {getattr(options, field.name)!r}" for field in fields(options)]
    of_worker = [text.splitlines() for text in gather_texts("\n".join(lines), group)]
    for rank, others in enumerate(of_worker):
        for here, there in zip_longest(of_worker[0], others, fillvalue="nothing more"):
            if here != there:
                raise UserError(
                    f"all workers give the same tables, in one order, and settings; worker 0 has "
                    f"{here}, worker {rank} {there}"
                )
