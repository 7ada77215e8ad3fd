"""The most probable next words over a vocabulary that is sharded over workers."""

from __future__ import annotations

import torch
from torch import Tensor

from dist_embed.model.logit_blocks import exponentials, log_normaliser
from dist_embed.model.logit_tiles import LogitTiles, merge_exponentials
from dist_embed.model.output import OutputShard
from dist_embed.parallel.collectives import exchange_rows, gather_rows

# Logits that are put in order at a time where equal ones make it necessary: 12 bytes each, and
# copies of them.
ORDERED_LOGITS = 2**17


def top_log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    own_ids: Tensor,
    shard: OutputShard,
    tokens_of_worker: list[int],
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k most probable next words of every token, over the whole vocabulary.

    Every worker finds the best of its own rows for the tokens of all, and sends each worker those
    of its tokens: that one receives W · n lists, however many tokens there are in all.

    Args:
        hidden: [n, D] of this worker's hypotheses; n may be 0.
        weight: [R, D] the output layer's rows of this worker's shard; R may be 0.
        own_ids: [R] the ids of those rows.
        shard: where those rows lie.
        tokens_of_worker: n of every worker.
        k: words per token, at most V.

    Returns:
        log probabilities [n, k], highest first, and their ids [n, k] (int64). Of equal
        probabilities the lowest ids are kept, and come in order.

    Collective.
    """
    group = shard.group
    all_hidden = gather_rows(hidden, tokens_of_worker, group).to(shard.dtype)
    found = best_of_shard(all_hidden, weight, own_ids, shard, k)
    mine = tokens_of_worker[group.rank]
    received = exchange_rows(found, tokens_of_worker, [mine] * group.num_workers, group)
    return merge_shards(received.view(group.num_workers, mine, found.shape[1]), k)


def best_of_shard(
    hidden: Tensor, weight: Tensor, own_ids: Tensor, shard: OutputShard, k: int
) -> Tensor:
    """What one shard knows of every token, as it travels: int32 [N, 2 + 2k], or + 3k where ids need
    more than 31 bits.

    Maximum and Σ exp(logit - maximum), the k highest logits and their ids; where the shard has
    fewer rows, -inf and V. Not collective.
    """
    num_tokens = hidden.shape[0]
    best = torch.full((num_tokens, k), float("-inf"), device=hidden.device)
    ids = torch.full((num_tokens, k), shard.num_rows, device=hidden.device)
    maximum, total = best.new_full((num_tokens,), float("-inf")), best.new_zeros(num_tokens)
    for block, first_row, logits in LogitTiles(hidden, weight, shard.block_bytes).tiles():
        tile_ids = own_ids[first_row : first_row + logits.shape[1]].expand_as(logits)
        values, words = _highest(logits, tile_ids, k)
        best[block], ids[block] = _highest(
            torch.cat([best[block], values], dim=1), torch.cat([ids[block], words], dim=1), k
        )
        merge_exponentials(maximum[block], total[block], *exponentials(logits))
    if shard.num_rows < 2**31:
        ids = ids.to(torch.int32)
    numbers = torch.cat([torch.stack([maximum, total], dim=1), best], dim=1)
    return torch.cat([numbers.view(torch.int32), ids.view(torch.int32)], dim=1)


def merge_shards(found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log probabilities and ids [n, k] from what `best_of_shard` gave on every worker: [W, n, …].

    Not collective.
    """
    num_workers, num_tokens, width = found.shape
    numbers = found[:, :, : 2 + k].view(torch.float32)
    wide = width > 2 + 2 * k
    ids = (
        found[:, :, 2 + k :]
        .clone(memory_format=torch.contiguous_format)
        .view(torch.int64 if wide else torch.int32)
    )
    values, words = _highest(
        numbers[:, :, 2:].transpose(0, 1).reshape(num_tokens, num_workers * k),
        ids.transpose(0, 1).reshape(num_tokens, num_workers * k),
        k,
    )
    log_z = log_normaliser(numbers[:, :, 0], numbers[:, :, 1])
    return values - log_z.unsqueeze(1), words.to(torch.int64)


def _highest(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of [b, m] the k highest values, or all m, and their ids: highest first, of equal ones the
    lowest ids, in order.
    """
    highest, place = values.topk(min(k + 1, values.shape[1]), dim=1)
    found = ids.gather(1, place)
    if values.shape[1] > k:
        # `topk` keeps any of equal values.
        tied = (highest[:, k - 1] == highest[:, k]).nonzero().squeeze(1)
        highest, found = highest[:, :k], found[:, :k]
        for tokens in tied.split(max(1, ORDERED_LOGITS // values.shape[1])):
            in_order = _in_order(values[tokens], ids[tokens])
            highest[tokens], found[tokens] = (part[:, :k] for part in in_order)
    return _in_order(highest, found)


def _in_order(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Both [b, m] by value, the highest first, and equal ones by id."""
    ids, by_id = ids.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, by_value)
