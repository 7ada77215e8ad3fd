"""What one step of a configuration is, in numbers: tokens, rows, samples, layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from dist_embed.config.schema import Config
from dist_embed.embedding.memory import OutputNeeds, block_tokens, by_blocks, tile_tokens
from dist_embed.embedding.plan import TableSpec, shard_of
from dist_embed.model.translation_tables import TABLE_OF_ROLE
from dist_embed.planning.balance import request_balance
from dist_embed.planning.machine import Machine
from dist_embed.planning.text import Text
from dist_embed.planning.words import Asked, Group, Words, asked_words, by_rank, rarer, sampled
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
        head: H: of each table so many of the most frequent rows are taken to be on every worker.
        parts_of_data: by how many workers each plans its part of the batches.

    Nothing does the last two yet: so a plan tells what they would give.
    """

    config: Config
    machine: Machine
    text: Text
    workers: int
    head: int = 0
    parts_of_data: int = 1

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
    def cores(self) -> float:
        """Of a node, for each of its workers."""
        return self.machine.cores / self.machine.workers_of_node(self.workers)

    @property
    def threads(self) -> int:
        """Of a worker on a CPU; with a GPU 1."""
        if self.machine.device == "cuda":
            return 1
        return self.config.cluster.threads_per_worker or max(1, int(self.cores))

    @property
    def oversubscribed(self) -> bool:
        """Whether a node's workers have more threads than it has cores."""
        return self.machine.device == "cpu" and self.threads > self.cores

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
    def pairs(self) -> float:
        """Sentence pairs of all workers."""
        return self.target_tokens / self.text.pair_tokens

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
        return not by_blocks(self.output, self.workers)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of logits of the exact output layer."""
        return block_tokens(self.output.block_bytes, self.output.table.num_rows, self.workers)

    @property
    def tile_tokens(self) -> float:
        """Tokens of a tile: no more than a micro-batch has; see `model.logit_tiles`."""
        there = self.target_tokens / self.config.train.accumulate
        return min(tile_tokens(self.output.block_bytes, self.output.device), there)

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
    def asked(self) -> dict[str, Asked]:
        """By table the words that a worker asks others for in a step, with how likely that is."""
        return {table: self._asked(table, self.head) for table in self.specs}

    @cached_property
    def distinct_rows(self) -> dict[str, float]:
        """U: by table how many distinct rows a worker asks others for, expected."""
        return {table: _expected(words) for table, words in self.asked.items()}

    @cached_property
    def looked_up(self) -> float:
        """Of all tables, those of the `head` too, which nobody is asked for."""
        if not self.head:
            return sum(self.distinct_rows.values())
        return sum(_expected(self._asked(table, 0)) for table in self.specs)

    @cached_property
    def request_balance(self) -> float:
        """Rows that the worker is asked for which is asked for most, by the mean of all."""
        return request_balance(self.specs, self.asked, self.workers)

    @property
    def head_rows(self) -> int:
        """Of all tables, that every worker has."""
        return sum(min(self.head, spec.num_rows) for spec in self.specs.values())

    def distinct_beyond(self, share: float) -> float:
        """Of all `distinct_rows`, those beyond a share of each table's rows, the most frequent."""
        if share >= 1:
            return 0.0
        return sum(
            _expected(self._asked(table, max(self.head, int(share * spec.num_rows))))
            for table, spec in self.specs.items()
        )

    def _asked(self, table: str, first: int) -> Asked:
        """Words of a table from the id ``first`` on, which a worker looks up in a step."""
        roles = [role for role, of in self._tables.items() if of == table]
        share = {"source": self.text.source_share, "target": self.text.target_share}
        negatives = "output" in roles and self.samples > 0
        sides = ["source"] if "source" in roles else []
        # What is read and what is to be written are the same words, one place apart.
        sides += ["target"] if "target" in roles or negatives else []
        if not sides:
            return []
        words = self.text.words["both" if len(sides) > 1 else sides[0]]
        draws = self.padded_tokens * sum(share[side] for side in sides)
        also = self._own_negatives(words) if negatives else None
        return asked_words(rarer(words, first), draws, also)

    @property
    def _tables(self) -> Mapping[str, str]:
        """By role."""
        return TABLE_OF_ROLE[self.config.model.share_embeddings]

    def _own_negatives(self, words: Words) -> Callable[[Group], float]:
        """The probability by which a word of a group is in a worker's part of the negatives."""
        model = self.config.model

        def by_count(group: Group) -> float:
            return float(group.probability**model.sampler_power)

        weight = by_count if model.sampler == "unigram" else by_rank
        drawn = sampled(words, self.drawn, weight)
        return lambda group: drawn(group) / self.workers


def _expected(words: Asked) -> float:
    """How many of them."""
    return math.fsum(group.count * likely for group, likely in words)
