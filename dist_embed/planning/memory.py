"""Memory of a worker by part, on its device and on its host, and whether it is there.

It is the estimate of the check before a run (`dist_embed.training.needs`); with a GPU what the
device holds is added, whose tier is chosen as a run chooses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dist_embed.embedding.memory import beside_tables_bytes, output_memory, table_bytes
from dist_embed.embedding.settings import Tier
from dist_embed.embedding.tier_sizes import (
    Sizes,
    cache_share,
    choose_tier,
    room_for_tables,
    sizes_of,
)
from dist_embed.errors import UserError
from dist_embed.planning.step import Step
from dist_embed.training.needs import step_needs, training_memory

Lacking = Literal["", "device", "host"]


@dataclass(frozen=True)
class WorkerMemory:
    """What a worker holds at most.

    Attributes:
        device: bytes by part where it computes: of the GPU, or of the host where there is none.
        host: of the host of a GPU; empty where there is none.
        lacking: where the machine has not that for each of its workers: on its ``device``s, else on
            the ``host``; empty: nowhere.
    """

    device: dict[str, int]
    host: dict[str, int]
    lacking: Lacking

    @property
    def device_bytes(self) -> int:
        """All of ``device``."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """All of ``host``."""
        return sum(self.host.values())


def worker_memory(step: Step) -> WorkerMemory:
    """Of each of a step's workers."""
    machine, here = step.machine, step.machine.workers_of_node(step.workers)
    node = machine.node_memory_gib * 2**30
    if step.device_bytes is None:
        parts = _on_host(step, None) | _head(step)
        return WorkerMemory(parts, {}, "device" if here * sum(parts.values()) > node else "")
    tier, tables, _ = tables_on_device(step)
    device = {"process": int(machine.device_process_mib * 2**20)} | tables
    device |= _head(step) | _beside(step)
    host = _on_host(step, tier or "device")
    lacking: Lacking = "host" if here * sum(host.values()) > node else ""
    if tier is None or sum(device.values()) > step.device_bytes:
        lacking = "device"
    return WorkerMemory(device, host, lacking)


def _on_host(step: Step, tier: Tier | None) -> dict[str, int]:
    return training_memory(
        step.config, step.text.vocabulary_size, narrow_products=step.narrow and tier is None,
        tier=tier, word_tables=step.text.word_tables, sentences=step.text.sentences,
        process_bytes=int(step.machine.process_mib * 2**20),
    )  # fmt: skip


def tables_on_device(step: Step) -> tuple[Tier | None, dict[str, int], float]:
    """With a GPU: the tier that a run would choose, None where there is no room for any; what the
    tables take of the GPU; and the share of their rows that lies there, in caches too.
    """
    assert step.device_bytes is not None
    embedding, specs = step.config.embedding, list(step.specs.values())
    whole = {step.output.table.name} if step.output.exact else set()
    sizes = sizes_of(specs, embedding.optimizer, step.workers, embedding.weights, whole)
    beside = beside_tables_bytes(step.output, step.workers, copied=True)
    beside += sum(_head(step).values())
    free = step.device_bytes - int(step.machine.device_process_mib * 2**20)
    room = room_for_tables(free, beside)
    try:
        tier = choose_tier(embedding.memory, sizes, room)
    except UserError:
        return None, _by_kind(step, sizes), 1.0
    if tier == "device":
        return tier, _by_kind(step, sizes), 1.0
    held = {"optimizer of tables": sizes.whole - sizes.in_host}
    if tier == "uvm":
        return tier, held, 0.0
    share = cache_share(sizes, room)
    held["cache of rows"] = sizes.bookkeeping + int(share * sizes.cacheable)
    return tier, held, share


def _head(step: Step) -> dict[str, int]:
    """Rows that every worker has, with their state and gradient, where it computes."""
    if not step.head:
        return {}
    embedding = step.config.embedding
    heads = [replace(spec, num_rows=min(step.head, spec.num_rows)) for spec in step.specs.values()]
    held = sum(table_bytes(head, embedding.optimizer, 1, embedding.weights) for head in heads)
    return {"rows on every worker": held + sum(4 * head.num_rows * head.width for head in heads)}


def _by_kind(step: Step, sizes: Sizes) -> dict[str, int]:
    """Rows and the optimizer's state of tables that lie on the device."""
    weights = step.config.embedding.weights
    rows = sum(table_bytes(spec, "sgd", step.workers, weights) for spec in step.specs.values())
    return {"rows": rows, "optimizer of tables": sizes.whole - rows}


def _beside(step: Step) -> dict[str, int]:
    """What a GPU holds beside the tables."""
    needs = step_needs(step.config, step.text.vocabulary_size, word_tables=True, narrow=step.narrow)
    dense = needs.dense_bytes
    return {
        "dense model": dense, "AdamW": 2 * dense, "dense gradients": dense, **needs.of_a_step,
        **output_memory(step.output, step.workers, copied=True),
    }  # fmt: skip
