"""What a step sends: bytes of each worker by what they are, and over which links they go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dist_embed.embedding.memory import LOGIT_NUMBERS_BYTES
from dist_embed.embedding.plan import bags_of_a_table
from dist_embed.planning.machine import Collective, Link, Machine
from dist_embed.planning.step import Step

_ID_BYTES = 8
_VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# By what collective things are sent, where not from each worker to each other.
_KINDS: dict[str, Collective] = {
    "hidden states": "all_gather", "numbers of logits": "all_gather", "negatives": "all_gather",
    "counts for clipping": "all_gather", "dense gradients": "all_reduce",
    "gradients of the head": "all_reduce",
}  # fmt: skip


def traffic(step: Step) -> dict[str, float]:
    """Bytes that a worker sends in a step, by what they are; nothing goes to itself.

    Of an all-gather it is what the worker sends to all others, of the sum over workers of the
    dense gradients what it passes on in a ring.
    """
    others = step.workers - 1
    elsewhere = others / step.workers
    width = step.config.embedding.width
    rows = sum(step.distinct_rows.values()) * elsewhere
    of_row = width * _VALUE_BYTES[step.config.embedding.exchange]
    # TorchRec sends how many rows each bag has before it sends which.
    bags = bags_of_a_table(step.machine.device, step.workers) * len(step.specs)
    sent = {
        "ids": sent_ids(step) + _ID_BYTES * bags * others,
        "vectors": of_row * rows,
        "row gradients": of_row * rows,
        "dense gradients": 2 * 4 * step.parameters * elsewhere,
    }
    if step.head_rows:
        sent["gradients of the head"] = 2 * 4 * width * step.head_rows * elsewhere
    own_tokens = step.target_tokens / step.workers
    if step.output.exact:
        sent["hidden states"] = (4 * width + _ID_BYTES) * own_tokens * others
        sent["gradients of hidden states"] = 4 * width * own_tokens * others
        sent["numbers of logits"] = LOGIT_NUMBERS_BYTES * step.target_tokens * others
    else:
        own_samples = step.drawn / step.workers
        sent["negatives"] = 4 * width * own_samples * others
        sent["gradients of negatives"] = 4 * width * own_samples * others
    if step.config.train.clip_norm:  # see `optim.gradient_norm`
        sent["counts for clipping"] = _ID_BYTES * len(step.specs) * step.workers * others
        sent["rows for clipping"] = (_ID_BYTES + 4 * width) * rows
    return sent


def sent_ids(step: Step) -> float:
    """Bytes of the ids that a worker sends in a step, without how many each bag has of them."""
    return _ID_BYTES * sum(step.distinct_rows.values()) * (step.workers - 1) / step.workers


@dataclass(frozen=True)
class Network:
    """How long collectives of all workers take on a machine.

    Attributes:
        machine: whose links there are.
        workers: W.
    """

    machine: Machine
    workers: int

    def links(self, sent: Mapping[str, float]) -> dict[str, float]:
        """Of what `traffic` tells: bytes within a worker's node, and beyond."""
        parts = [self.parts(_KINDS.get(name, "all_to_all"), size) for name, size in sent.items()]
        within, between = (sum(part[place] for part in parts) for place in (0, 1))
        return {"within a node": within, "between nodes": between}

    def parts(self, kind: Collective, sent: float) -> tuple[float, float]:
        """Of the bytes that a worker sends in a collective: those within its node, and beyond.

        From each worker to each other every byte has a way of its own. What is gathered enters a
        node once, and what is summed up goes round in a ring for each worker of a node; each worker
        has a link of its own to other nodes, and its share of that.
        """
        here = self.machine.workers_of_node(self.workers)
        if self.workers == here:
            return sent, 0.0
        beyond = sent if kind == "all_reduce" else sent * (self.workers - here) / (self.workers - 1)
        if kind != "all_to_all":
            beyond /= here
        return sent - beyond, beyond

    def latency(self, kind: Collective) -> float:
        """Seconds of one without bytes."""
        if self.workers == 1:
            return 0.0
        here = self.machine.workers_of_node(self.workers)
        within, _ = self._within(kind, here)
        nodes, between = self.machine.nodes(self.workers), self.machine.between_nodes
        if between is None or nodes == 1:
            return 1e-6 * within
        return 1e-6 * (within + _link_latency(kind, between, nodes, self.workers - here))

    def sending(self, kind: Collective, sent: float) -> float:
        """Seconds for the bytes that each worker sends, without `latency`."""
        if self.workers == 1:
            return 0.0
        _, gb_s = self._within(kind, self.machine.workers_of_node(self.workers))
        within, beyond = self.parts(kind, sent)
        between = self.machine.between_nodes
        return max(within / (1e9 * gb_s), beyond / (1e9 * between.gb_s) if between else 0.0)

    def _within(self, kind: Collective, workers: int) -> tuple[float, float]:
        """Latency, µs, and 10⁹ bytes a second of a collective of a node's workers."""
        if workers == 1:
            return 0.0, math.inf
        link = self.machine.within_node
        of_kind = [one for one in self.machine.exchanges if one.kind == kind]
        if not of_kind:
            return _link_latency(kind, link, workers, workers - 1), link.gb_s
        nearest = min(of_kind, key=lambda one: abs(math.log(one.workers / workers)))
        if kind == "all_to_all":
            more = link.peer_us * max(0, workers - nearest.workers)
            return nearest.latency_us + more, nearest.gb_s
        steps = math.log2(workers) / math.log2(nearest.workers)
        return nearest.latency_us * max(1.0, steps), nearest.gb_s


def _link_latency(kind: Collective, link: Link, members: int, peers: int) -> float:
    """µs: by a tree of so many members; from each to each, one and more for each peer."""
    if kind == "all_to_all":
        return link.latency_us + link.peer_us * peers
    return link.latency_us * math.ceil(math.log2(members))
