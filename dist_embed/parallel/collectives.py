"""The collective calls dist_embed makes, under the name of what they are for.

Every function here is collective: all workers of the group call it in the same order, or all wait
until the group's time-out. Rows are gathered with different counts per worker; the counts are
known to every worker beforehand, so that a gather is one exchange. What a step waits in them counts
as such (`observe.phases.waiting`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from dist_embed.observe.phases import waiting
from dist_embed.parallel.group import Group

# The name of 2.13, which warns of the one that versions before have.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def sum_over_workers(tensor: Tensor, group: Group) -> Tensor:
    """Sum ``tensor`` over all workers, in place; returned for convenience. Collective."""
    return start_sum_over_workers(tensor, group)()


def start_sum_over_workers(tensor: Tensor, group: Group) -> Callable[[], Tensor]:
    """`sum_over_workers`, whose result is there once it is called for; see
    `start_stack_over_workers`. Collective.
    """
    if group.num_workers == 1:
        return lambda: tensor
    work = dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group.process_group, async_op=True)

    def summed() -> Tensor:
        with waiting():
            work.wait()
        return tensor

    return summed


def sum_numbers_over_workers(numbers: list[int], group: Group) -> list[int]:
    """Sum each of the host's ``numbers`` over all workers. Collective.

    One worker alone asks no device.
    """
    if group.num_workers == 1:
        return numbers
    own = torch.tensor(numbers, dtype=torch.int64, device=group.device)
    summed: list[int] = sum_over_workers(own, group).tolist()
    return summed


def least_over_workers(value: int, group: Group) -> int:
    """The least of every worker's ``value``. Collective."""
    least = torch.tensor(value, device=group.device)
    if group.num_workers > 1:
        with waiting():
            dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group.process_group)
    return int(least)


def stack_over_workers(tensor: Tensor, group: Group) -> Tensor:
    """Stack every worker's ``tensor`` (equal shapes) to [W, ...]. Collective."""
    return start_stack_over_workers(tensor, group)()


def start_stack_over_workers(tensor: Tensor, group: Group) -> Callable[[], Tensor]:
    """`stack_over_workers`, whose result is there once it is called for. Collective.

    Only the start is: workers may call for the result at different times, once each. ``tensor``
    must stay as it is until then.
    """
    if group.num_workers == 1:
        return lambda: tensor.unsqueeze(0)
    out = tensor.new_empty((group.num_workers, *tensor.shape))
    work = _all_gather(out.view(-1), tensor.reshape(-1), group=group.process_group, async_op=True)

    def gathered() -> Tensor:
        with waiting():
            work.wait()
        return out

    return gathered


def copy_from_worker(tensor: Tensor, rank: int, group: Group) -> None:
    """Give every worker's ``tensor`` (equal shapes and types) worker ``rank``'s values, in place.

    Collective.
    """
    if group.num_workers == 1 or not tensor.numel():
        return
    sent = tensor.detach().to(group.device).contiguous()
    # As bytes: so every type travels, on every backend.
    as_bytes = sent.reshape(-1).view(torch.uint8)
    with waiting():
        dist.broadcast(as_bytes, group=group.process_group, group_src=rank)
    if sent.data_ptr() != tensor.data_ptr():
        tensor.copy_(sent)


def gather_rows(rows: Tensor, rows_of_worker: list[int], group: Group) -> Tensor:
    """Concatenate every worker's ``rows`` in the order of ranks. Collective.

    Args:
        rows: [rows_of_worker[rank], ...].
        rows_of_worker: how many each worker has, the same list on every worker.
    """
    return start_gather_rows(rows, rows_of_worker, group)()


def start_gather_rows(
    rows: Tensor, rows_of_worker: list[int], group: Group
) -> Callable[[], Tensor]:
    """`gather_rows`, whose result is there once it is called for; see `start_stack_over_workers`.

    Collective.
    """
    if group.num_workers == 1:
        return lambda: rows
    longest = max(rows_of_worker)
    if longest == min(rows_of_worker):
        equal = start_stack_over_workers(rows, group)
        return lambda: equal().flatten(0, 1)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    arriving = start_stack_over_workers(padded, group)

    def gathered() -> Tensor:
        parts = arriving()
        return torch.cat([parts[rank, :count] for rank, count in enumerate(rows_of_worker)])

    return gathered


def sum_and_scatter_rows(rows: Tensor, rows_of_worker: list[int], group: Group) -> Tensor:
    """Sum ``rows`` over workers and keep this worker's part: the adjoint of `gather_rows`.

    Args:
        rows: [sum(rows_of_worker), ...] on every worker, parts in the order of ranks.
        rows_of_worker: how many each worker has, the same list on every worker.

    Returns:
        [rows_of_worker[rank], ...], summed in the order of ranks: equal runs give equal bits.

    Collective.
    """
    return start_sum_and_scatter_rows(rows, rows_of_worker, group)()


def start_sum_and_scatter_rows(
    rows: Tensor, rows_of_worker: list[int], group: Group
) -> Callable[[], Tensor]:
    """`sum_and_scatter_rows`, whose result is there once it is called for; see
    `start_stack_over_workers`. Collective.
    """
    if group.num_workers == 1:
        return lambda: rows
    mine = rows_of_worker[group.rank]
    arriving = start_exchange_rows(rows, rows_of_worker, [mine] * group.num_workers, group)
    return lambda: arriving().view(group.num_workers, mine, *rows.shape[1:]).sum(0)


def exchange_rows(rows: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    """Send ``send[w]`` consecutive rows to each worker w, receive ``receive[w]`` from each.

    Returns [sum(receive), ...], parts in the order of the senders' ranks. Collective.
    """
    return start_exchange_rows(rows, send, receive, group)()


def start_exchange_rows(
    rows: Tensor, send: list[int], receive: list[int], group: Group
) -> Callable[[], Tensor]:
    """`exchange_rows`, whose result is there once it is called for; see `start_stack_over_workers`.

    Collective.
    """
    if group.num_workers == 1:
        return lambda: rows
    out = rows.new_empty((sum(receive), *rows.shape[1:]))
    work = dist.all_to_all_single(
        out, rows.contiguous(), receive, send, group=group.process_group, async_op=True
    )

    def exchanged() -> Tensor:
        with waiting():
            work.wait()
        return out

    return exchanged


def gather_texts(text: str, group: Group) -> list[str]:
    """Every worker's ``text``, in the order of ranks. Collective."""
    if group.num_workers == 1:
        return [text]
    data = _encoded(text, group)
    size = torch.tensor(len(data), device=group.device)
    sizes = stack_over_workers(size, group).tolist()
    joined = gather_rows(data, sizes, group).cpu().numpy().tobytes()
    texts, start = [], 0
    for length in sizes:
        texts.append(joined[start : start + length].decode())
        start += length
    return texts


def same_text_from_first(text: str, group: Group) -> str:
    """Worker 0's ``text`` on every worker; that of the others counts for nothing. Collective."""
    if group.num_workers == 1:
        return text
    data = _encoded(text if group.is_first else "", group)
    size = torch.tensor(len(data), device=group.device)
    with waiting():
        dist.broadcast(size, group=group.process_group, group_src=0)
        if not group.is_first:
            data = data.new_empty(int(size))
        dist.broadcast(data, group=group.process_group, group_src=0)
    return data.cpu().numpy().tobytes().decode()


def _encoded(text: str, group: Group) -> Tensor:
    """Its bytes, on the worker's device."""
    # A traceback may hold what UTF-8 cannot, a file's name; failing here leaves peers waiting.
    encoded = text.encode(errors="backslashreplace")
    data = torch.frombuffer(bytearray(encoded or b"\0"), dtype=torch.uint8)[: len(encoded)]
    return data.to(group.device)
