"""What a phase's seconds are spent on."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """Seconds of one phase by what they are spent on.

    Attributes:
        compute: matrix products.
        memory: reading and writing.
        operations: starting operations, where they are small.
        latency: of exchanges, whatever they carry.
        network: bytes of exchanges that nothing else goes on beside.
        hot: waiting for the worker that is asked for most rows.
        data: waiting until the step's batches are planned.
        stall: waiting for checkpoints.
    """

    compute: float = 0.0
    memory: float = 0.0
    operations: float = 0.0
    latency: float = 0.0
    network: float = 0.0
    hot: float = 0.0
    data: float = 0.0
    stall: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, work: float, exchange: float) -> Cost:
        """What a worker does by itself, and exchanges, each so many times. Waits stay."""
        return Cost(
            work * self.compute, work * self.memory, work * self.operations,
            exchange * self.latency, exchange * self.network, self.hot, self.data, self.stall,
        )  # fmt: skip

    def beside(self, seconds: float) -> Cost:
        """Without so much of its exchanges, which goes on beside other work."""
        left = max(0.0, 1.0 - seconds / self.exchange) if self.exchange else 0.0
        return self.times(1.0, left)

    @property
    def work(self) -> float:
        """Seconds of what a worker does by itself."""
        return self.compute + self.memory + self.operations

    @property
    def exchange(self) -> float:
        """Seconds of exchanges."""
        return self.latency + self.network

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.work + self.exchange + self.hot + self.data + self.stall
