"""A small configuration and a made-up machine, whose plan can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.planning import Machine, machine_from_yaml
from dist_embed.planning.estimate import step_of
from dist_embed.planning.step import Step
from dist_embed.planning.text import text_of

# Round numbers: 10⁹ FLOP/s, 10⁹ bytes/s, exchanges of 1 ms and 10⁹ bytes/s.
MACHINE = """
name: made up
device: cpu
cores: 64
node_memory_gib: 64
process_mib: 100
products: [{type: fp32, inner: 64, gflops: 1}]
memory_gb_s: 1
gather: [{row_bytes: 256, gb_s: 1}]
operation_us: 0
within_node: {latency_us: 1000, gb_s: 1}
store: {latency_ms: 0, put_gb_s: 1, get_gb_s: 1}
"""
GPUS = """
name: made-up GPUs
device: cuda
workers_per_node: 8
cores: 64
node_memory_gib: 512
device_memory_gib: 16
process_mib: 100
device_process_mib: 200
host_link_gb_s: 50
products: [{type: bf16, inner: 64, gflops: 1000}]
memory_gb_s: 1000
gather: [{row_bytes: 256, gb_s: 1000}]
operation_us: 1
within_node: {latency_us: 1, gb_s: 100}
between_nodes: {latency_us: 10, gb_s: 10}
store: {latency_ms: 0, put_gb_s: 1, get_gb_s: 1}
"""


def machine(text: str = MACHINE, **changes: Any) -> Machine:
    return machine_from_yaml(text, "test").model_copy(update=changes)


def configured(**sections: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "run": {"uri": "/nowhere/run"}, "data": {"synthetic": {}},
        "train": {"max_steps": 1, "batch_tokens": 1000, "precision": "fp32"},
        "tokenizer": {"vocab_size": 1000},
        "embedding": {"width": 8},
        "model": {"width": 8, "heads": 2, "feed_forward": 16, "encoder_layers": 1,
                  "decoder_layers": 1, "share_embeddings": "all", "logits_block_mib": 1},
        "checkpoint": {"saving": "in_place", "every_steps": 0},
    }  # fmt: skip
    for section, settings in sections.items():
        values[section] = values.get(section, {}) | settings
    return config_from_dict(values)


def planned(
    workers: int = 2, on: Machine | None = None, head: int = 0, **sections: dict[str, Any]
) -> Step:
    config = configured(**sections)
    return replace(step_of(config, workers, on or machine(), text_of(config)), head=head)


SAMPLED: dict[str, Any] = {"model": {"output": "sampled", "num_samples": 100}}
