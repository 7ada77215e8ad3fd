"""What one step of a configuration is, in numbers: tokens, rows, samples, layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from dist_embed.config.schema import Config
from dist_embed.embedding.memory import LEAST_BLOCK_TOKENS, OutputNeeds, block_tokens
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.planning.machine import Machine
from dist_embed.planning.text import Text
from dist_embed.planning.words import Group, Words, by_rank, distinct, rarer, sampled
from dist_embed.training.needs import dense_parameters, output_needs, specs_of
from dist_embed.training.samples import samples_of_a_step


@dataclass(frozen=True)
class Step:
    """One step, with so many workers on a machine.

    Attributes:
        config: of the run, with that number of workers.
        machine: what does it.
        text: what it is of.
        workers: W.
    """

    config: Config
    machine: Machine
    text: Text
    workers: int

    @cached_property
    def specs(self) -> dict[str, TableSpec]:
        """The tables by name."""
        return specs_of(self.config, self.text.vocabulary_size)

    @property
    def narrow(self) -> bool:
        """Whether matrix products are bfloat16."""
        precision = self.config.train.precision
        return precision == "bf16" or (precision == "auto" and self.machine.narrow_is_native)

    @property
    def device_bytes(self) -> int | None:
        """Memory of a GPU; None on the CPU."""
        gib = self.machine.device_memory_gib
        return None if self.machine.device == "cpu" or gib is None else int(gib * 2**30)

    @cached_property
    def output(self) -> OutputNeeds:
        """The output layer, as far as memory goes."""
        return output_needs(
            self.config, self.text.vocabulary_size, narrow_products=self.narrow,
            device_bytes=self.device_bytes, num_workers=self.workers,
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        """Of the dense model."""
        return dense_parameters(self.config.model, self.config.embedding.width)

    @property
    def target_tokens(self) -> float:
        """N: of all workers, without padding."""
        return self.config.train.batch_tokens * self.text.target_share

    @property
    def padded_tokens(self) -> float:
        """Of a worker on either side, padding included."""
        return self.config.train.batch_tokens / self.workers

    @property
    def output_rows(self) -> int:
        """R: rows of the output layer that a worker holds."""
        return shard_of(self.output.table.num_rows, 0, self.workers).physical_rows

    @property
    def by_tiles(self) -> bool:
        """Whether the exact output layer is trained by tiles of tokens × rows."""
        return self.block_tokens < LEAST_BLOCK_TOKENS[self.output.device]

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of logits of the exact output layer."""
        return block_tokens(self.output.block_bytes, self.output.table.num_rows, self.workers)

    @property
    def samples(self) -> int:
        """C: negatives of a worker's tokens; 0 with the exact output layer."""
        return self.output.negatives

    @property
    def drawn(self) -> int:
        """S: negatives that are drawn for all workers; 0 with the exact output layer."""
        if self.output.exact:
            return 0
        return samples_of_a_step(self.config, self.text.vocabulary_size["target"])

    @cached_property
    def distinct_rows(self) -> dict[str, float]:
        """U: by table how many distinct rows a worker looks up, expected."""
        return {table: self._distinct(of) for table, of in self._roles.items()}

    def distinct_beyond(self, share: float) -> float:
        """Of all `distinct_rows`, those beyond a share of each table's rows, the most frequent."""
        if share >= 1:
            return 0.0
        return sum(
            self._distinct(of, int(share * self.specs[table].num_rows))
            for table, of in self._roles.items()
        )

    @property
    def _roles(self) -> dict[str, list[str]]:
        """By table."""
        roles: dict[str, list[str]] = {}
        for role, table in TABLE_OF_ROLE[self.config.model.share_embeddings].items():
            roles.setdefault(table, []).append(role)
        return roles

    def _distinct(self, roles: list[str], first: int = 0) -> float:
        """Of one table with these roles, from the id ``first`` on."""
        share = {"source": self.text.source_share, "target": self.text.target_share}
        negatives = "output" in roles and self.samples > 0
        sides = ["source"] if "source" in roles else []
        # What is read and what is to be written are the same words, one place apart.
        sides += ["target"] if "target" in roles or negatives else []
        if not sides:
            return 0.0
        words = self.text.words["both" if len(sides) > 1 else sides[0]]
        draws = self.padded_tokens * sum(share[side] for side in sides)
        also = self._own_negatives(words) if negatives else None
        return distinct(rarer(words, first), draws, also)

    def _own_negatives(self, words: Words) -> Callable[[Group], float]:
        """The probability by which a word of a group is in a worker's part of the negatives."""
        model = self.config.model

        def by_count(group: Group) -> float:
            return float(group.probability**model.sampler_power)

        weight = by_count if model.sampler == "unigram" else by_rank
        drawn = sampled(words, self.drawn, weight)
        return lambda group: drawn(group) / self.workers
