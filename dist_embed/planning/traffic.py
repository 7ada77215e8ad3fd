"""What a step sends: bytes of each worker by what they are, and over which links they go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dist_embed.planning.machine import Collective, Machine
from dist_embed.planning.step import Step

_ID_BYTES = 8
_VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_NUMBERS_OF_A_TOKEN = 4 * 4  # what workers tell each other of a token's logits


def traffic(step: Step) -> dict[str, float]:
    """Bytes that a worker sends in a step, by what they are; nothing goes to itself.

    Of an all-gather it is what the worker sends to all others, of the sum over workers of the
    dense gradients what it passes on in a ring.
    """
    others = step.workers - 1
    if not others:
        return dict.fromkeys(("ids", "vectors", "row gradients", "dense gradients"), 0.0)
    elsewhere = others / step.workers
    width = step.config.embedding.width
    rows = sum(step.distinct_rows.values()) * elsewhere
    of_row = width * _VALUE_BYTES[step.config.embedding.exchange]
    sent = {
        "ids": _ID_BYTES * rows,
        "vectors": of_row * rows,
        "row gradients": of_row * rows,
        "dense gradients": 2 * 4 * step.parameters * elsewhere,
    }
    own_tokens = step.target_tokens / step.workers
    if step.output.exact:
        sent["hidden states"] = (4 * width + _ID_BYTES) * own_tokens * others
        sent["gradients of hidden states"] = 4 * width * own_tokens * others
        sent["numbers of logits"] = _NUMBERS_OF_A_TOKEN * step.target_tokens * others
    else:
        own_samples = step.drawn / step.workers
        sent["negatives"] = 4 * width * own_samples * others
        sent["gradients of negatives"] = 4 * width * own_samples * others
    return sent


@dataclass(frozen=True)
class Network:
    """How long collectives of all workers take on a machine.

    Attributes:
        machine: whose links there are.
        workers: W.
    """

    machine: Machine
    workers: int

    def links(self, sent: float) -> dict[str, float]:
        """Of bytes that a worker sends to all others alike: those within its node and beyond."""
        if self.workers == 1:
            return {"within a node": 0.0, "between nodes": 0.0}
        beyond = (self.workers - self.machine.workers_of_node(self.workers)) / (self.workers - 1)
        return {"within a node": sent * (1 - beyond), "between nodes": sent * beyond}

    def latency(self, kind: Collective) -> float:
        """Seconds of one without bytes."""
        if self.workers == 1:
            return 0.0
        here = self.machine.workers_of_node(self.workers)
        within, _ = self._within(kind, here)
        nodes, between = self.machine.nodes(self.workers), self.machine.between_nodes
        beyond = between.latency_us * math.ceil(math.log2(nodes)) if between and nodes > 1 else 0.0
        return 1e-6 * (within + beyond)

    def sending(self, kind: Collective, sent: float) -> float:
        """Seconds for the bytes that each worker sends, without `latency`."""
        if self.workers == 1:
            return 0.0
        _, gb_s = self._within(kind, self.machine.workers_of_node(self.workers))
        links, between = self.links(sent), self.machine.between_nodes
        if kind == "all_reduce":  # a ring for each worker of a node, each over its own link
            links = {"within a node": sent, "between nodes": sent if between else 0.0}
            if self.machine.nodes(self.workers) == 1:
                links["between nodes"] = 0.0
            else:
                links["between nodes"] /= self.machine.workers_of_node(self.workers)
        beyond = links["between nodes"] / (1e9 * between.gb_s) if between else 0.0
        return max(links["within a node"] / (1e9 * gb_s), beyond)

    def _within(self, kind: Collective, workers: int) -> tuple[float, float]:
        """Latency, µs, and 10⁹ bytes a second of a collective of a node's workers."""
        if workers == 1:
            return 0.0, math.inf
        link = self.machine.within_node
        of_kind = [one for one in self.machine.exchanges if one.kind == kind]
        if not of_kind:
            return link.latency_us * math.ceil(math.log2(workers)), link.gb_s
        nearest = min(of_kind, key=lambda one: abs(math.log(one.workers / workers)))
        steps = math.log2(workers) / math.log2(nearest.workers)
        return nearest.latency_us * max(1.0, steps), nearest.gb_s
