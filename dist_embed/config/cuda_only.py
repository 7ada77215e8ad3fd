"""Settings of the tables that need CUDA, or that it cannot serve, and what is said of them."""

from __future__ import annotations

# FBGEMM's kernels that update rows (fbgemm-gpu 1.6.0 to 1.8.0: TORCH_CHECK(max_D <= 2048) in
# embedding_backward_split_template.cu) would end the run in its first step.
WIDEST_ON_CUDA = 2048

_WHERE = "is not allowed on the CPU (cluster.device=cpu, or auto where there is no GPU)"


def problems_without_cuda(*, optimizer: str, memory: str, weights: str, exchange: str) -> list[str]:
    """What of the section ``embedding`` cannot be used on the CPU, one message each."""
    problems = []
    if optimizer == "adam":
        problems.append(
            f"embedding.optimizer: 'adam' {_WHERE}: FBGEMM has its fused kernel for CUDA alone; "
            "use rowwise_adagrad, adagrad or sgd"
        )
    if memory in ("uvm", "uvm_caching"):
        problems.append(
            f"embedding.memory: {memory!r} {_WHERE}: the tables lie in host memory there already; "
            "use auto or device"
        )
    if weights != "fp32":
        problems.append(
            f"embedding.weights: {weights!r} {_WHERE}: FBGEMM's CPU kernels round to nearest, and "
            "small updates would be lost; use fp32"
        )
    if exchange != "fp32":
        problems.append(
            f"embedding.exchange: {exchange!r} {_WHERE}: it is for the exchange between GPUs; "
            "use fp32"
        )
    return problems


def problems_on_cuda(*, width: int) -> list[str]:
    """What of the section ``embedding`` a GPU cannot serve, one message each."""
    if width <= WIDEST_ON_CUDA:
        return []
    return [
        f"embedding.width: {width} is not allowed on a GPU: FBGEMM's kernels update rows of at "
        f"most {WIDEST_ON_CUDA} values there; take {WIDEST_ON_CUDA} or less (model.width may be "
        "larger), or cluster.device=cpu"
    ]
