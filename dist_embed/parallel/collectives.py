"""The collective calls dist_embed makes, under the name of what they are for.

Every function here is collective: all workers of the group call it in the same order, or all wait
until the group's time-out. Rows are gathered with different counts per worker; the counts are
known to every worker beforehand, so that a gather is one exchange.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from dist_embed.parallel.group import Group


def sum_over_workers(tensor: Tensor, group: Group) -> Tensor:
    """Sum ``tensor`` over all workers, in place; returned for convenience. Collective."""
    if group.num_workers > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group.process_group)
    return tensor


def least_over_workers(value: int, group: Group) -> int:
    """The least of every worker's ``value``. Collective."""
    least = torch.tensor(value, device=group.device)
    if group.num_workers > 1:
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group.process_group)
    return int(least)


def gather_equal(tensor: Tensor, group: Group) -> Tensor:
    """Stack every worker's ``tensor`` (equal shapes) to [W, ...]. Collective."""
    if group.num_workers == 1:
        return tensor.unsqueeze(0)
    out = tensor.new_empty((group.num_workers, *tensor.shape))
    dist.all_gather(list(out.unbind(0)), tensor.contiguous(), group=group.process_group)
    return out


def gather_rows(rows: Tensor, counts: list[int], group: Group) -> Tensor:
    """Concatenate every worker's ``rows`` in the order of ranks: [sum(counts), ...]. Collective.

    Args:
        rows: [counts[rank], ...].
        counts: rows of each worker, the same list on every worker.
    """
    if group.num_workers == 1:
        return rows
    longest = max(counts)
    if longest == min(counts):
        return gather_equal(rows, group).flatten(0, 1)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    gathered = gather_equal(padded, group)
    return torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)])


def sum_and_scatter_rows(rows: Tensor, counts: list[int], group: Group) -> Tensor:
    """Sum ``rows`` over workers and keep this worker's part: the adjoint of `gather_rows`.

    Args:
        rows: [sum(counts), ...] on every worker, parts in the order of ranks.
        counts: rows of each worker, the same list on every worker.

    Returns:
        [counts[rank], ...], summed in the order of ranks, so that equal runs give equal bits.

    Collective.
    """
    if group.num_workers == 1:
        return rows
    mine = counts[group.rank]
    received = exchange_rows(rows, counts, [mine] * group.num_workers, group)
    return received.view(group.num_workers, mine, *rows.shape[1:]).sum(0)


def exchange_rows(rows: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    """Send ``send[w]`` consecutive rows to each worker w, receive ``receive[w]`` from each.

    Returns [sum(receive), ...], parts in the order of the senders' ranks. Collective.
    """
    if group.num_workers == 1:
        return rows
    out = rows.new_empty((sum(receive), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group.process_group)
    return out


def gather_texts(text: str, group: Group) -> list[str]:
    """Every worker's ``text``, in the order of ranks. Collective."""
    if group.num_workers == 1:
        return [text]
    # A traceback may hold what UTF-8 cannot, a file's name; failing here leaves peers waiting.
    encoded = text.encode(errors="backslashreplace")
    size = len(encoded)
    data = torch.frombuffer(bytearray(encoded or b"\0"), dtype=torch.uint8)[:size]
    data = data.to(group.device)
    sizes = gather_equal(torch.tensor(size, device=group.device), group).tolist()
    joined = gather_rows(data, sizes, group).cpu().numpy().tobytes()
    texts, start = [], 0
    for length in sizes:
        texts.append(joined[start : start + length].decode())
        start += length
    return texts


def same_text_from_first(text: str, group: Group) -> str:
    """Worker 0's ``text`` on every worker. Collective."""
    return gather_texts(text if group.is_first else "", group)[0]
