"""How long pieces of a step take at least on a machine, by what it does at most."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dist_embed.planning.cost import Cost
from dist_embed.planning.machine import Collective, Dtype
from dist_embed.planning.memory import tables_on_device
from dist_embed.planning.step import Step
from dist_embed.planning.traffic import Network


@dataclass(frozen=True)
class Roofline:
    """What a worker of a step does, and what its links do.

    Attributes:
        step: whose workers.
    """

    step: Step

    @cached_property
    def network(self) -> Network:
        """Of all workers."""
        return Network(self.step.machine, self.step.workers)

    def own(
        self, *, flops: float = 0.0, inner: int = 64, values: float = 0.0, operations: float = 0.0
    ) -> Cost:
        """Products, float32 values that are read or written, and operations."""
        machine, share = self.step.machine, self._share
        dtype: Dtype = "bf16" if self.step.narrow else "fp32"
        compute = flops / machine.flops(dtype, inner) / share
        memory = 4 * values / machine.bytes_per_second() / share
        starting = 1e-6 * machine.operation_us * operations / min(1.0, share)
        if machine.device == "cuda":  # the host starts operations while the device works
            starting = max(0.0, starting - compute - memory)
        return Cost(compute, memory, starting)

    def gathered(self, rows: float, width: int) -> Cost:
        """Rows that are read, or written, one by one."""
        of_row = 4 * width
        speed = self.step.machine.gathered_per_second(of_row)
        return Cost(memory=rows * of_row / speed / self._share)

    def exchanged(self, kind: Collective, sent: float, times: float = 1.0) -> Cost:
        """``times`` exchanges that carry ``sent`` bytes of this worker together."""
        return Cost(
            latency=times * self.network.latency(kind), network=self.network.sending(kind, sent)
        )

    def from_host(self, values: float) -> Cost:
        """Values of rows that a GPU fetches from its host, or writes there."""
        of_value = 2 if self.step.config.embedding.weights == "fp16" else 4
        return Cost(memory=of_value * values / self.step.machine.host_link())

    def missed(self, times: int) -> Cost:
        """Rows that no cache holds, so often between a GPU and its host: those of words that are
        not among the most frequent ones, of which a cache is full.
        """
        rows = self.step.distinct_beyond(self.share_on_device)
        return self.from_host(times * self.step.config.embedding.width * rows)

    @property
    def _share(self) -> float:
        """Of one core, or one GPU, that a worker has: more with several threads."""
        step = self.step
        return 1.0 if step.machine.device == "cuda" else min(step.cores, step.threads)

    @property
    def rows_on_host(self) -> bool:
        """Whether rows may lie on the host of a GPU."""
        return self._placed[0]

    @property
    def share_on_device(self) -> float:
        """Of rows that do not."""
        return self._placed[1]

    @cached_property
    def _placed(self) -> tuple[bool, float]:
        if self.step.device_bytes is None:
            return False, 1.0
        tier, _, share = tables_on_device(self.step)
        return tier in ("uvm", "uvm_caching"), share
