"""The best words from one list of all of them, the reference of those of shards."""

from __future__ import annotations

import torch

from dist_embed.model.logit_blocks import exponentials, log_normaliser

TOKENS, WIDTH = 21, 4


def whole_numbers(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, rows and ids whose logits are exact, and often equal."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randint(-2, 3, (TOKENS, WIDTH), generator=generator).float()
    weight = torch.randint(-1, 2, (num_rows, WIDTH), generator=generator).float()
    return hidden, weight, torch.randperm(num_rows, generator=generator)


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, shards: list[int], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits at once, sorted by value and id; the normaliser of shards of so many rows."""
    logits = hidden @ weight.t()
    parts = [exponentials(part.clone()) for part in logits.split(shards, dim=1)]
    maximum, total = (torch.stack(part) for part in zip(*parts, strict=True))
    best, words = [], []
    for row in logits.tolist():
        ordered = sorted(zip(row, ids.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        best.append([value for value, _ in ordered[:k]])
        words.append([word for _, word in ordered[:k]])
    log_z = log_normaliser(maximum, total).unsqueeze(1)
    return torch.tensor(best) - log_z, torch.tensor(words)
