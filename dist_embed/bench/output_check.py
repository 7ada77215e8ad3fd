"""What the output layers have to compute, in plain float32, and how far off a pass is.

Without it a layer that leaves out half of its work would be the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.embedding.step_rows import StepRows
from dist_embed.errors import RunFailed
from dist_embed.model.sampler import Negatives

# Largest relative differences by type of the products; sums are float32 in both. bfloat16 has 8
# bits, so logits of size 1 are off by some thousandths, and their exponentials with them.
LOSS_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 2e-3}
GRADIENT_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
_BLOCK_BYTES = 2**28  # of float32 logits that are held at once


@dataclass(frozen=True)
class Computed:
    """What a pass has computed.

    Attributes:
        loss: sum of -log p over N tokens.
        hidden: [N, D] gradient of the tokens' mean -log p by the hidden states.
        rows: [R, D] the same by rows.
    """

    loss: Tensor
    hidden: Tensor
    rows: Tensor


def plain_cross_entropy(hidden: Tensor, weight: Tensor, rows: Tensor) -> Computed:
    """`functional.cross_entropy` over all rows, some tokens at a time.

    Args:
        hidden: [N, D].
        weight: [R, D].
        rows: [N] those of the right answers.
    """
    hidden, weight = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
    loss = torch.zeros((), device=hidden.device)
    for some in _blocks(len(hidden), len(weight)):
        part = functional.cross_entropy(hidden[some] @ weight.t(), rows[some], reduction="sum")
        (part / len(hidden)).backward()
        loss += part.detach()
    assert hidden.grad is not None
    assert weight.grad is not None
    return Computed(loss, hidden.grad, weight.grad)


def plain_sampled_cross_entropy(
    hidden: Tensor, looked_up: StepRows, targets: Tensor, negatives: Negatives
) -> Computed:
    """The estimate of `dist_embed.model.sampled_output` by `functional.cross_entropy`.

    Args:
        hidden: [N, D].
        looked_up: fresh ones, of the right answers and then the negatives, in one table.
        targets: [N] ids of the right answers.
        negatives: the samples.
    """
    hidden = hidden.detach().requires_grad_()
    (table,) = looked_up.tables.values()
    loss = torch.zeros((), device=hidden.device)
    for some in _blocks(len(hidden), len(negatives.ids)):
        h, wanted = hidden[some], targets[some]
        answers = (h * looked_up.vectors("output", 0)[some]).sum(1, keepdim=True)
        logits = h @ looked_up.vectors("output", 1).t() - negatives.log_probability
        logits = logits.masked_fill(negatives.ids == wanted.unsqueeze(1), float("-inf"))
        part = functional.cross_entropy(
            torch.cat([answers, logits], 1), torch.zeros_like(wanted), reduction="sum"
        )
        (part / len(hidden)).backward()
        loss += part.detach()
    assert hidden.grad is not None
    assert table.vectors.grad is not None
    return Computed(loss, hidden.grad, table.vectors.grad)


def check(
    name: str, found: Computed, expected: Computed, answers: Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """How far ``found`` is from ``expected``, relative to its size.

    The rows of right answers are told apart from others, of which the gradient is far smaller.

    Args:
        name: of who has computed ``found``.
        found: by a pass.
        expected: in plain float32.
        answers: row numbers of the right answers.
        dtype: type of the products.

    Raises:
        RunFailed: further than that type explains.
    """
    others = torch.ones(len(expected.rows), dtype=torch.bool, device=answers.device)
    others[answers] = False
    differences = {
        "loss": _difference(found.loss.view(1), expected.loss.view(1)),
        "gradient of hidden states": _difference(found.hidden, expected.hidden),
        "gradient of answers' rows": _difference(found.rows, expected.rows, ~others),
        "gradient of other rows": _difference(found.rows, expected.rows, others),
    }
    for what, difference in differences.items():
        allowed = (LOSS_ALLOWED if what == "loss" else GRADIENT_ALLOWED)[dtype]
        if not difference <= allowed:  # not a number is none
            raise RunFailed(
                f"{name}: its {what} differs from plain float32 by {difference:.2g} of its size, "
                f"and {allowed:g} is allowed: its figures would mean nothing"
            )
    return differences


def _blocks(num_tokens: int, num_rows: int) -> Iterator[slice]:
    """Tokens whose logits against so many rows are held at once."""
    at_once = max(1, _BLOCK_BYTES // (4 * num_rows))
    return (slice(first, first + at_once) for first in range(0, num_tokens, at_once))


def _difference(found: Tensor, expected: Tensor, chosen: Tensor | None = None) -> float:
    """Norm of the difference by norm of what is expected, of all or ``chosen`` rows."""
    squares = [(found - expected).square_(), expected.square()]
    if chosen is not None:
        squares = [each.sum(1)[chosen] for each in squares]
    difference, size = (float(each.sum(dtype=torch.float64).sqrt()) for each in squares)
    return difference / max(size, 1e-30)  # where nothing is expected, nothing is to be found
