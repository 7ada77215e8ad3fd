"""The exact output layer by tiles of tokens × rows, where a shard has too many rows for a block of
whole logits to hold a useful number of tokens.

One pass keeps a running maximum and sum of exponentials per token, a second one computes each tile
again and forms its gradients, so that memory is that of one tile, whatever the vocabulary. The idea
of Cut Cross-Entropy (Wijmans et al. 2025, arXiv 2411.09009), with plain matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dist_embed.embedding.memory import tile_tokens
from dist_embed.embedding.tables import lies_in_host_memory
from dist_embed.model.logit_blocks import LogitBlocks, Picked, exponentials


class LogitTiles:
    """Tiles of the logits of N tokens against a shard's rows.

    Args:
        hidden: [N, D] in the type of the matrix products' operands.
        weight: [R, D] this worker's rows, of any type; R may be 0. A tile's rows are copied where
            their type is another, or where they lie in host memory: each is fetched once, then.
        tile_bytes: upper bound for one tile of float32 logits, and for such a copy.

    Nothing here is collective.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, tile_bytes: int) -> None:
        self._hidden = hidden
        self._weight = weight
        most = tile_tokens(tile_bytes, "cuda" if weight.is_cuda else "cpu")
        self._tokens = max(1, min(most, hidden.shape[0]))
        self._copied = weight.dtype != hidden.dtype or lies_in_host_memory(weight)
        row_bytes = 4 * self._tokens
        if self._copied:
            row_bytes = max(row_bytes, weight.shape[1] * hidden.element_size())
        self._rows = max(1, tile_bytes // row_bytes)

    def statistics(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maximum, Σ exp(logit - maximum) and the target's logit of every token, each [N] float32.

        ``targets`` [N] are numbers of rows of this shard; for those outside of it the logit is 0.
        """
        num_tokens = self._hidden.shape[0]
        maximum = torch.full((num_tokens,), float("-inf"), device=self._hidden.device)
        total, target_logit = torch.zeros_like(maximum), torch.zeros_like(maximum)
        for block, first_row, logits in self.tiles():
            target_logit[block] += Picked(targets[block] - first_row, logits.shape[1]).read(logits)
            merge_exponentials(maximum[block], total[block], *exponentials(logits))
        return maximum, total, target_logit

    def gradients(
        self,
        targets: Tensor,
        log_z: Tensor,
        target_share: float,
        grad_weight: Tensor | None,
        weight_scale: float,
    ) -> Tensor:
        """Σ over tokens of d/d(hidden, weight) for d loss / d logits = p - target_share · onehot.

        Args:
            targets: as in `statistics`.
            log_z: [N] log of the whole vocabulary's normaliser.
            target_share: 1 - ε.
            grad_weight: [R, D] float32, to which the weights' is added; None: it is not wanted.
            weight_scale: what it is multiplied by.

        Returns:
            float32 [N, D], this shard's part of the gradient of the hidden states.
        """
        grad_hidden = torch.zeros_like(self._hidden, dtype=torch.float32)
        part = grad_hidden.new_empty((self._tokens, grad_hidden.shape[1]))
        for first_row, blocks in self._row_blocks():
            rows = slice(first_row, first_row + self._rows)
            for block in self._token_blocks():
                h = self._hidden[block]
                grad = blocks.logits(h).sub_(log_z[block].unsqueeze(1)).exp_()
                Picked(targets[block] - first_row, grad.shape[1]).add(grad, -target_share)
                into = None if grad_weight is None else grad_weight[rows]
                blocks.add_gradients(grad, h, part[: h.shape[0]], into, weight_scale)
                grad_hidden[block] += part[: h.shape[0]]
        return grad_hidden

    def tiles(self) -> Iterator[tuple[slice, int, Tensor]]:
        """(tokens, first row, logits [b, r], valid until the next tile), row blocks outermost."""
        for first_row, blocks in self._row_blocks():
            for block in self._token_blocks():
                yield block, first_row, blocks.logits(self._hidden[block])

    def _row_blocks(self) -> Iterator[tuple[int, LogitBlocks]]:
        """The same blocks for all rows, so that there is one tile at a time."""
        blocks: LogitBlocks | None = None
        for first_row in range(0, self._weight.shape[0], self._rows):
            rows = self._weight[first_row : first_row + self._rows]
            if self._copied:
                rows = rows.to(self._hidden.dtype, copy=True)
            if blocks is None:
                blocks = LogitBlocks(rows, self._tokens, self._hidden.dtype)
            else:
                blocks.change_rows(rows)
            yield first_row, blocks

    def _token_blocks(self) -> Iterator[slice]:
        for start in range(0, self._hidden.shape[0], self._tokens):
            yield slice(start, min(start + self._tokens, self._hidden.shape[0]))


def merge_exponentials(maximum: Tensor, total: Tensor, more: Tensor, more_total: Tensor) -> None:
    """Take the maxima and sums of more logits into those so far, in place; each [b]."""
    highest = torch.maximum(maximum, more)
    total.mul_((maximum - highest).exp()).add_(more_total * (more - highest).exp())
    maximum.copy_(highest)
