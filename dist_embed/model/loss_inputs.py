"""What the losses of a step are given, taken where it can be, else refused by name and value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dist_embed.arguments import of_kind, real_number, shown, whole_number
from dist_embed.embedding.step_ids import ids_of
from dist_embed.errors import UserError
from dist_embed.model.output import OutputShard


class LossInputs:
    """Of one step.

    Args:
        shard: of the output layer.
        width: D of its rows.
        micro_batches: how many losses there will be.

    Raises UserError here and below. Nothing is collective.
    """

    def __init__(self, shard: OutputShard, width: int, micro_batches: int) -> None:
        self._shard, self._width = shard, width
        self._micro_batches = whole_number("micro_batches", micro_batches, 1)
        self._taken = 0

    def take(
        self, hidden: Any, micro: Any, targets: Any, tokens_of_worker: Any, label_smoothing: Any
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Of `StepLoss.of`: hidden states as float32, targets as int64, tokens of every worker.

        Targets that are no ids are not looked for on a GPU: its host would have to wait.
        """
        if self._taken == self._micro_batches or micro != self._taken:
            left = range(self._taken, self._micro_batches)
            raise UserError(
                f"micro: {shown(micro)} is not allowed: each of a step's {self._micro_batches} "
                f"micro-batches once, in order; {f'{left[0]} is next' if left else 'none is left'}"
            )
        self._check_hidden(hidden)
        targets = ids_of("targets", targets)
        tokens = len(hidden)
        if targets.shape != (tokens,):
            raise UserError(
                f"targets: {list(targets.shape)} is not allowed: [{tokens}], one for each row of "
                f"`hidden` {list(hidden.shape)}"
            )
        self._check_device("targets", targets)
        num_rows = self._shard.num_rows
        if targets.device.type == "cpu" and tokens:
            lowest, highest = map(int, targets.aminmax())
            if lowest < 0 or highest >= num_rows:
                raise UserError(
                    f"targets: {lowest if lowest < 0 else highest} is no id; allowed are 0 to "
                    f"{num_rows - 1}"
                )
        real_number("label_smoothing", label_smoothing, most=1)
        counts = self._counts(tokens_of_worker, tokens)
        self._taken += 1
        return hidden.float(), targets, counts

    def require_all(self) -> None:
        """Raise UserError where a loss has not been asked for."""
        if self._taken != self._micro_batches:
            raise UserError(
                f"finish: {self._taken} of the step's {self._micro_batches} micro-batches have had "
                "their loss"
            )

    def _check_hidden(self, hidden: Any) -> None:
        of_kind("hidden", hidden, Tensor, f"a tensor [n, {self._width}]")
        if hidden.dim() != 2 or hidden.shape[1] != self._width:
            raise UserError(
                f"hidden: {list(hidden.shape)} is not allowed: [n, {self._width}], a row for each "
                "token, as wide as the table; flatten the dimensions before"
            )
        if not hidden.is_floating_point():
            raise UserError(f"hidden: {hidden.dtype} is not allowed: a type of real numbers")
        self._check_device("hidden", hidden)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        device = self._shard.group.device
        if tensor.device.type != device.type:
            raise UserError(f"{name}: on {tensor.device} is not allowed: on {device}")

    def _counts(self, given: Any, tokens: int) -> list[int]:
        group, name = self._shard.group, "tokens_of_worker"
        of_kind(name, given, Iterable, "a list of how many tokens each worker has")
        counts = [whole_number(f"{name}[{rank}]", n, 0) for rank, n in enumerate(given)]
        if len(counts) != group.num_workers or counts[group.rank] != tokens:
            raise UserError(
                f"{name}: {shown(counts)} is not allowed: how many tokens each of "
                f"{group.num_workers} workers has, in the order of ranks; worker {group.rank} has "
                f"{tokens}"
            )
        return counts
