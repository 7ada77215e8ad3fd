"""The tables that `dist_embed.bench.lookup` measures, and whether a device can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from dist_embed.bench.lookup_draws import Draw
from dist_embed.bench.passes import WARM_UP
from dist_embed.config.cuda_only import problems_on_cuda, problems_without_cuda
from dist_embed.embedding.memory import GIB, table_bytes
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Tier, Weights
from dist_embed.embedding.tier_sizes import choose_tier, room_for_tables, sizes_of
from dist_embed.embedding.tiers import free_bytes
from dist_embed.errors import UserError
from dist_embed.parallel.machine import available_bytes


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        memory: where its rows lie.
        weights: their type.
        optimizer: key of `dist_embed.embedding.tables.OPTIMIZERS`.
        num_rows: V.
    """

    memory: Tier
    weights: Weights
    optimizer: str
    num_rows: int

    def __str__(self) -> str:
        return f"{self.memory}, {self.weights}, {self.optimizer}, {self.num_rows:,} rows"


@dataclass(frozen=True)
class Work:
    """What is looked up in each of them.

    Attributes:
        num_ids: N, ids of a step.
        width: D.
        draw: how ids are drawn.
        repeats: steps that are timed.
    """

    num_ids: int
    width: int
    draw: Draw
    repeats: int

    def table_bytes(self, case: Case) -> int:
        """Of rows and optimizer's state."""
        return table_bytes(self._spec(case), case.optimizer, 1, case.weights)

    def bytes_to_move(self, case: Case, distinct: int) -> tuple[int, int]:
        """Bytes that a lookup has to move, and lookup and update together; see
        `dist_embed.bench.lookup`.
        """
        one = Case(case.memory, case.weights, case.optimizer, 1)
        with_state = self.table_bytes(one)
        row = table_bytes(self._spec(one), "sgd", 1, case.weights)
        vectors = self.num_ids * self.width * 4
        lookup = distinct * row + vectors
        return lookup, lookup + vectors + 2 * distinct * with_state

    def beside_table_bytes(self, case: Case) -> int:
        """What the device holds beside the table, a careful guess: some arrays with a vector for
        every id, all steps' ids and what is known of each, and what a draw takes.
        """
        vectors = 8 * self.num_ids * self.width * 4
        ids = (self.repeats + WARM_UP + 4) * self.num_ids * 32
        return vectors + ids + (32 * case.num_rows if self.draw == "distinct" else 0)

    def check_fits(self, case: Case, on_device: int | None, in_host: int) -> None:
        """Raise UserError where a table cannot be, for its rows or for want of memory.

        Args:
            case: which.
            on_device: free bytes of the GPU; None: on the CPU.
            in_host: free bytes of this machine.
        """
        if not 1 <= case.num_rows < 2**31:
            raise UserError(f"{case}: not allowed; a table has 1 to {2**31 - 1:,} rows")
        if self.draw == "distinct" and self.num_ids > case.num_rows:
            raise UserError(
                f"--ids: {self.num_ids:,} is not allowed: so many cannot be distinct in a table of "
                f"{case.num_rows:,} rows; use at most as many, or another --draw"
            )
        sizes = sizes_of([self._spec(case)], case.optimizer, 1, case.weights)
        beside = self.beside_table_bytes(case)
        in_tier = sizes.in_host if on_device is not None and case.memory != "device" else 0
        needs = [("this machine", in_tier, in_host)]
        if on_device is None:
            needs = [("this machine", sizes.whole + beside, in_host)]
        else:
            needs.append(("this GPU", sizes.whole - in_tier + beside, on_device))
        for place, needed, free in needs:
            if needed > free:
                raise UserError(
                    f"{case}: {needed / GIB:.2f} GiB of {place}'s memory are needed, with ids and "
                    f"vectors, and {free / GIB:.2f} GiB are free; use fewer rows (--rows, --fill), "
                    "fewer --ids or --repeats, or a smaller --width"
                )
        if on_device is not None:
            choose_tier(case.memory, sizes, room_for_tables(on_device, beside))

    def _spec(self, case: Case) -> TableSpec:
        return TableSpec("shared", case.num_rows, self.width)


def possible_cases(
    device: torch.device, work: Work, *, num_rows: int, fill: float | None,
    memories: Sequence[Tier], weights: Sequence[Weights], optimizers: Sequence[str],
) -> list[Case]:  # fmt: skip
    """Every combination of memory, type of rows and optimizer.

    Args:
        device: where they are to be.
        work: what is looked up in them.
        num_rows: V.
        fill: instead of it, where it is given: the share of the device's free memory (on the CPU
            of this machine's) that rows and optimizer's state take together, wherever they lie.
        memories, weights, optimizers: what is combined.

    Raises:
        UserError: one is not possible on this device, or does not fit.
    """
    kinds = list(product(memories, weights, optimizers))
    problems = problems_on_cuda(width=work.width) if device.type == "cuda" else []
    if device.type == "cpu":
        for memory, kind, optimizer in kinds:
            problems += problems_without_cuda(
                optimizer=optimizer, memory=memory, weights=kind, exchange="fp32"
            )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    on_device = free_bytes(device) if device.type == "cuda" else None
    in_host = available_bytes()
    cases = []
    for memory, kind, optimizer in kinds:
        if fill is not None:
            free = in_host if on_device is None else on_device
            num_rows = int(fill * free / work.table_bytes(Case(memory, kind, optimizer, 1)))
        cases.append(Case(memory, kind, optimizer, num_rows))
        work.check_fits(cases[-1], on_device, in_host)
    return cases
