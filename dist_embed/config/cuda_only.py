"""Settings of the tables that need CUDA, and what is said where there is none."""

from __future__ import annotations

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
