"""Settings of the tables that need CUDA, or that it cannot serve, and what is said of them."""

from __future__ import annotations

# FBGEMM's kernels that update rows (fbgemm-gpu 1.6.0 to 1.8.0: TORCH_CHECK(max_D <= 2048) in
# embedding_backward_split_template.cu) would end the run in its first step.
WIDEST_ON_CUDA = 2048


def problems_without_cuda(
    *, optimizer: str, memory: str, weights: str, exchange: str, configured: bool = True
) -> list[str]:
    """What of the section ``embedding`` cannot be used on the CPU, one message each.

    Where it is not ``configured``, they are arguments of `ShardedTables`.
    """
    section = "embedding." if configured else ""
    where = "is not allowed on the CPU" + (
        " (cluster.device=cpu, or auto where there is no GPU)" if configured else ""
    )
    problems = []
    if optimizer == "adam":
        problems.append(
            f"{section}optimizer: 'adam' {where}: FBGEMM has its fused kernel for CUDA alone; "
            "use rowwise_adagrad, adagrad or sgd"
        )
    if memory in ("uvm", "uvm_caching"):
        problems.append(
            f"{section}memory: {memory!r} {where}: the tables lie in host memory there already; "
            "use auto or device"
        )
    if weights != "fp32":
        problems.append(
            f"{section}weights: {weights!r} {where}: FBGEMM's CPU kernels round to nearest, and "
            "small updates would be lost; use fp32"
        )
    if exchange != "fp32":
        problems.append(
            f"{section}exchange: {exchange!r} {where}: it is for the exchange between GPUs; "
            "use fp32"
        )
    return problems


def problems_on_cuda(*, width: int, configured: bool = True) -> list[str]:
    """What of the section ``embedding`` a GPU cannot serve, one message each; ``configured`` as in
    `problems_without_cuda`.
    """
    section = "embedding." if configured else ""
    other = "(model.width may be larger), or cluster.device=cpu" if configured else "or the CPU"
    if width <= WIDEST_ON_CUDA:
        return []
    return [
        f"{section}width: {width} is not allowed on a GPU: FBGEMM's kernels update rows of at "
        f"most {WIDEST_ON_CUDA} values there; take {WIDEST_ON_CUDA} or less {other}"
    ]
