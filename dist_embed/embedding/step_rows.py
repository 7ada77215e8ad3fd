"""What one step holds of the tables, and what it has asked for.

Rows come as autograd leaves. The dense half of the step runs forward and backward on the leaves;
`StepRows.backward` then hands the leaves' gradients to the tables, whose fused optimizer updates
the touched rows. A step that is dropped between the two leaves the tables untouched.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional

from dist_embed.arguments import shown
from dist_embed.embedding.own_rows import OwnRows
from dist_embed.errors import UserError
from dist_embed.observe.phases import phase, waiting, waiting_until
from dist_embed.parallel.collectives import sum_numbers_over_workers
from dist_embed.parallel.group import Group


@dataclass(frozen=True)
class WantedRows:
    """What a step looks up. It is found out where the ids are: for training in the loader's thread,
    so that no GPU's host has to wait for it.

    Attributes:
        rows: by table [U] distinct row numbers, ascending; so those of one owner lie together.
        index: by feature where the vectors of the ids will lie.
    """

    rows: dict[str, Tensor]
    index: dict[str, list[Tensor]]

    def changed(self, change: Callable[[Tensor], Tensor]) -> WantedRows:
        """The same with ``change`` of every tensor: pinned, or on another device."""
        return WantedRows(
            {table: change(rows) for table, rows in self.rows.items()},
            {name: [change(piece) for piece in pieces] for name, pieces in self.index.items()},
        )


@dataclass
class RowRequest:
    """Row numbers on their way to the workers that hold the rows.

    They travel in two exchanges for each width: how many each worker is asked for, then the
    numbers.

    Attributes:
        wanted: what this worker's tokens need.
        contexts: TorchRec's, of this lookup, one for each width.
    """

    wanted: WantedRows
    contexts: list[Any]
    _counts: list[Any] = field(repr=False)
    _numbers: list[Any] = field(default_factory=list, repr=False)
    _arrived: bool = field(default=False, repr=False)

    def send(self) -> None:
        """Begin the second exchanges. Waits for the first; does nothing when called again.

        Collective.
        """
        if not self._numbers:
            with phase("ids exchange"), waiting():
                self._numbers = [counts.wait() for counts in self._counts]

    def arrived(self) -> list[Any]:
        """What the workers ask this one for. Collective.

        Raises UserError: it has been asked for already.
        """
        if self._arrived:
            raise UserError("request: it is fetched once, and has been already")
        self._arrived = True
        self.send()
        with phase("ids exchange"), waiting():
            return [numbers.wait() for numbers in self._numbers]


@dataclass
class TableRows:
    """What one step holds of one table.

    Attributes:
        rows: [U] distinct row numbers that this worker's tokens need, ascending.
        vectors: [U, D] leaf with the vectors at ``rows``.
    """

    rows: Tensor
    vectors: Tensor
    _looked_up: Tensor = field(repr=False)


@dataclass
class StepRows:
    """The rows of one step: per table the leaves, per feature where the vectors of its ids lie.

    Attributes:
        tables: by name.
        own: of the tables that training takes whole all rows of this worker's shard; none where
            rows were looked up without a gradient.
        table_of: the table of each feature.
        unfinished: softmaxes that have not given all gradients of these rows yet.
    """

    tables: dict[str, TableRows]
    own: dict[str, OwnRows]
    table_of: dict[str, str]
    _index: dict[str, list[Tensor]] = field(repr=False)
    _before_update: Callable[[StepRows, bool], None] = field(repr=False)
    # Of what this worker's shards gave: gradients get there from all workers.
    _taken_here: list[Node] = field(default_factory=list, repr=False)
    _given: bool = field(default=False, repr=False)
    unfinished: int = field(default=0, repr=False)

    def vectors(self, feature: str, number: int = 0) -> Tensor:
        """Vectors of the ids that were given as ``ids[feature][number]``: their shape + [D].

        With a gradient to the leaf of the feature's table. Raises UserError: they were not given.
        """
        self._check_given(feature, number)
        leaf = self.tables[self.table_of[feature]].vectors
        return functional.embedding(self._index[feature][number], leaf)

    def _check_given(self, feature: str, number: int) -> None:
        if not isinstance(feature, str) or feature not in self._index:
            known = ", ".join(self._index) or "none"
            raise UserError(
                f"feature {feature!r} was not looked up in this step; there are {known}"
            )
        count = self.count(feature)
        if not isinstance(number, SupportsIndex) or not -count <= operator.index(number) < count:
            raise UserError(
                f"feature {feature!r}: number: {shown(number)} is not below {count}, the "
                "tensors of ids that were looked up"
            )

    def count(self, feature: str) -> int:
        """How many tensors of ids were looked up for a feature."""
        return len(self._index.get(feature, []))

    @property
    def train(self) -> bool:
        """Whether they were looked up with a gradient."""
        return any(table._looked_up.requires_grad for table in self.tables.values())

    def add_gradient(self, feature: str, number: int, gradient: Tensor) -> None:
        """Add the gradient of `vectors` by hand; nothing where the table is frozen.

        Not collective.
        """
        leaf = self.tables[self.table_of[feature]].vectors
        if not leaf.requires_grad:
            return
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        leaf.grad.index_add_(0, self._index[feature][number].flatten(), gradient.flatten(0, -2))

    def own_gradient(self, table: str) -> Tensor | None:
        """The gradient of all rows of this worker's shard of ``table``: [R, D], zeros where nothing
        has been added; None where training does not take them all, or leaves them as they are.
        """
        gradient = self.own[table].gradient if table in self.own else None
        return None if gradient is None else gradient.summed()

    def gradients(self) -> list[Tensor]:
        """The gradients that are there, of all tables."""
        found = [table.vectors.grad for table in self.tables.values()]
        found += [self.own_gradient(table) for table in self.own]
        return [gradient for gradient in found if gradient is not None]

    def require_first_half(self, group: Group) -> None:
        """Raise UserError on all workers where no row of any has a gradient, but some wait for one:
        zeros would pass for theirs. Collective.
        """
        leaves = [table.vectors for table in self.tables.values() if table.vectors.requires_grad]
        own = [rows.gradient for rows in self.own.values() if rows.gradient is not None]
        flags = [
            any(len(leaf) for leaf in leaves),
            any(leaf.grad is not None for leaf in leaves),
            bool(own),
            any(gradient.begun for gradient in own),
        ]
        pending, given, whole, begun = sum_numbers_over_workers(
            [int(flag) for flag in flags], group
        )
        if (pending or (whole and not begun)) and not given:
            raise UserError(
                "backward: none of these rows has a gradient on any worker: call backward() of the "
                "loss first, from which they get theirs. Where none is to have one: "
                "backward(proven=True)"
            )

    def backward(self, *, proven: bool = False) -> None:
        """Second half of the step: give the gradients to the tables. Collective.

        The fused optimizer updates every row that any worker touched, once, with the mean over
        workers of their leaves' gradients (TorchRec divides by W, as DDP does), and every row of
        the tables that are trained whole.

        Args:
            proven: the first half has run, so that workers need not agree that it has, which is an
                exchange, and has a GPU's host wait.

        Raises:
            UserError: no worker's rows have a gradient, since the loss's backward has not run; or
                this has been done; or rows were looked up without a gradient, or for training again
                since; or a softmax is not finished. Nothing has changed.
        """
        if self._given:
            raise UserError(
                "backward: the gradients of these rows have been given to the tables already; "
                "look the rows of the next step up anew"
            )
        if not self.train:
            raise UserError(
                "backward: these rows were looked up without a gradient, as inside torch.no_grad()"
            )
        if self.unfinished:
            raise UserError(
                "backward: a softmax still has gradients of these rows; call finish() of what its "
                "`start` has given first"
            )
        self._before_update(self, proven)
        self._given = True
        leaves = [table.vectors for table in self.tables.values()]
        with phase("table backward"), waiting_until(self._taken_here):
            torch.autograd.backward(
                [table._looked_up for table in self.tables.values()],
                [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves],
            )
