"""The most probable next words over a vocabulary that is sharded over workers."""

from __future__ import annotations

import torch
from torch import Tensor

from dist_embed.model.logit_blocks import exponentials, log_normaliser
from dist_embed.model.logit_tiles import LogitTiles, merge_exponentials
from dist_embed.model.output import OutputShard
from dist_embed.parallel.collectives import gather_rows, stack_over_workers


def top_log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    own_ids: Tensor,
    shard: OutputShard,
    tokens_of_worker: list[int],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k most probable next words of every token, over the whole vocabulary.

    Args:
        hidden: [n, D] of this worker's hypotheses; n may be 0.
        weight: [R, D] the output layer's rows of this worker's shard.
        own_ids: [R] the ids of those rows.
        shard: where those rows lie.
        tokens_of_worker: n of every worker.
        k: words per token, at most V.

    Returns:
        log probabilities [n, k], highest first, and their ids [n, k] (int64), equal
        probabilities in the order of ids (which of more than k equal ones are kept is open).

    Collective.
    """
    all_hidden = gather_rows(hidden, tokens_of_worker, shard.group).to(shard.dtype)
    num_tokens = all_hidden.shape[0]
    best = torch.full((num_tokens, k), float("-inf"), device=hidden.device)
    best_ids = torch.full((num_tokens, k), shard.num_rows, device=hidden.device)
    stats = best.new_zeros((2, num_tokens))
    stats[0] = float("-inf")
    for block, first_row, logits in LogitTiles(all_hidden, weight, shard.block_bytes).tiles():
        values, index = logits.topk(min(k, logits.shape[1]), dim=1)
        values = torch.cat([best[block], values], dim=1)
        ids = torch.cat([best_ids[block], own_ids[first_row + index]], dim=1)
        best[block], kept = values.topk(k, dim=1)
        best_ids[block] = ids.gather(1, kept)
        merge_exponentials(stats[0, block], stats[1, block], *exponentials(logits))
    maximum, total = stack_over_workers(stats, shard.group).unbind(1)
    log_z = log_normaliser(maximum, total)
    # [N, W * k] candidates; sorting by id first makes the stable sort by value break ties by id.
    values = stack_over_workers(best, shard.group).transpose(0, 1).reshape(num_tokens, -1)
    ids = stack_over_workers(best_ids, shard.group).transpose(0, 1).reshape(num_tokens, -1)
    ids, by_id = ids.sort(dim=1, stable=True)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    start = sum(tokens_of_worker[: shard.group.rank])
    mine = slice(start, start + tokens_of_worker[shard.group.rank])
    log_probabilities = values[mine, :k] - log_z[mine].unsqueeze(1)
    return log_probabilities, ids.gather(1, by_value)[mine, :k]
