"""``dist-embed bench lookup`` on a GPU: what it checks before it times anything."""

from __future__ import annotations

import pytest

from dist_embed.bench.lookup import lookup_report
from dist_embed.bench.lookup_cases import Work
from dist_embed.embedding.settings import Tier
from tests.gpu.device import on_cuda_alone

pytestmark = on_cuda_alone


@pytest.mark.parametrize("memory", ["device", "uvm", "uvm_caching"])
def test_lookups_and_updates_are_right_in_both_ways(memory: Tier) -> None:
    report = lookup_report(
        "cuda", Work(3000, 64, "power-law", 2), num_rows=4000, fill=None, memories=[memory],
        weights=["fp32", "fp16"], optimizers=["sgd", "adagrad", "rowwise_adagrad", "adam"],
        say=print,
    )  # fmt: skip
    assert len(report.found) == 8
    for one in report.found:
        assert one.seconds.kernel_update_on_device > 0  # the profiler sees the device
        assert min(one.seconds.update, one.seconds.lookup) > 0
