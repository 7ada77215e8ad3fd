"""Where the rows lie, as it follows from sizes; the devices are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dist_embed.embedding import tiers
from dist_embed.embedding.plan import TableSpec
from dist_embed.embedding.settings import Memory, Tier
from dist_embed.embedding.tier_sizes import (
    Sizes,
    cache_share,
    check_device_memory,
    check_host_memory,
    choose_tier,
    room_for_tables,
    sizes_of,
)
from dist_embed.embedding.tiers import find_tier, tier_line
from dist_embed.errors import UserError
from dist_embed.parallel.group import Group

GIB = 2**30
SIZES = Sizes(whole=10 * GIB, in_host=9 * GIB, bookkeeping=GIB, cacheable=8 * GIB)


@pytest.mark.parametrize(
    ("room", "tier"),
    [(11 * GIB, "device"), (10 * GIB, "device"), (10 * GIB - 1, "uvm_caching"),
     (2 * GIB + 1, "uvm_caching"), (None, "device")],
)  # fmt: skip
def test_auto_takes_the_device_where_the_shards_fit(room: int | None, tier: Tier) -> None:
    assert choose_tier("auto", SIZES, room) == tier


@pytest.mark.parametrize("room", [0, 5 * GIB, 100 * GIB, None])
def test_what_is_asked_for_is_done(room: int | None) -> None:
    assert choose_tier("device", SIZES, room) == "device"
    assert choose_tier("uvm", SIZES, room) == "uvm"
    if room != 0:
        assert choose_tier("uvm_caching", SIZES, room) == "uvm_caching"


@pytest.mark.parametrize(
    ("configured", "section", "also"),
    [(False, "", ""),
     (True, "embedding.", "; also model.output=sampled or a smaller model.logits_block_mib")],
)  # fmt: skip
@pytest.mark.parametrize("wanted", ["auto", "uvm_caching"])
def test_a_cache_without_room_is_refused(
    wanted: Memory, configured: bool, section: str, also: str
) -> None:
    with pytest.raises(UserError) as caught:
        choose_tier(wanted, SIZES, 2 * GIB, configured=configured)
    message = str(caught.value)
    assert message.startswith(f"{section}memory: '{wanted}' is not possible here")
    assert "more than 2.00 GiB" in message
    assert "room for 2.00 GiB" in message
    assert message.endswith(
        f"a smaller {section}width, or {section}memory=uvm (or device, where this estimate is too "
        f"careful){also}"
    )
    assert ("cluster.num_workers" in message) == configured


def test_a_step_and_a_share_of_the_rest_are_left_to_others() -> None:
    assert room_for_tables(101 * GIB, GIB) == int(0.8 * 100 * GIB)
    assert room_for_tables(GIB, 2 * GIB) == 0


def test_sizes_follow_from_all_tables() -> None:
    specs = [TableSpec("a", 1000, 64), TableSpec("b", 11, 8)]
    found = sizes_of(specs, "rowwise_adagrad", 2, "fp16")
    assert found.whole == 500 * (64 * 2 + 4) + 6 * (8 * 2 + 4)
    assert found.whole - found.in_host == 4 * 506
    more = sizes_of([TableSpec("a", 3000, 64), specs[1]], "rowwise_adagrad", 2, "fp16")
    assert more.bookkeeping - found.bookkeeping == 4 * 1000


def test_a_table_that_is_trained_whole_takes_no_part_in_the_cache() -> None:
    specs = [TableSpec("a", 2000, 64), TableSpec("b", 1000, 64)]
    apart = sizes_of(specs, "sgd", 2, "fp32", {"b"})
    assert apart == replace(
        sizes_of(specs, "sgd", 2, "fp32"),
        bookkeeping=sizes_of(specs[:1], "sgd", 2, "fp32").bookkeeping,
        cacheable=1000 * (64 * 4 + 20),  # with what FBGEMM keeps beside a cached row
    )
    alone = sizes_of(specs[1:], "sgd", 2, "fp32", {"b"})
    assert alone.bookkeeping == 0
    for wanted in ("auto", "uvm_caching"):
        assert choose_tier(wanted, alone, 0) == "uvm"  # where no cache could be, none is missed


def test_all_caches_together_fit_in_the_room() -> None:
    assert cache_share(SIZES, 3 * GIB) == 1 / 8
    assert cache_share(SIZES, 3 * GIB + 6 * GIB // 10) == pytest.approx(0.2)
    assert cache_share(SIZES, 100 * GIB) == 0.2


def test_what_a_step_takes_of_a_device_has_to_be_there_in_every_tier() -> None:
    check_device_memory(SIZES, 3 * GIB, 4 * GIB)  # of the tables a GiB cannot lie elsewhere
    said = r"^4.50 GiB of every GPU .* has 4.00 GiB free\. Use more workers or a smaller width$"
    with pytest.raises(UserError, match=said):
        check_device_memory(SIZES, 7 * GIB // 2, 4 * GIB)


def test_host_memory_holds_the_shards_of_all_workers_of_the_machine() -> None:
    check_host_memory(3 * GIB, 4, 12 * GIB)
    said = r"need 12.0 GiB .*3.00 GiB for each of 4 .*11.0 GiB are"
    for configured, keys in ((False, "width, or weights"), (True, "embedding.width, or embedding")):
        with pytest.raises(UserError, match=f"{said}.* a smaller {keys}"):
            check_host_memory(3 * GIB, 4, 11 * GIB, configured=configured)


def test_on_the_cpu_no_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "free_bytes", None)
    cpu = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    specs = [TableSpec("a", 10**9, 64)]
    monkeypatch.setattr(tiers, "available_bytes", lambda: 256 * 10**9)
    assert find_tier("auto", specs, "sgd", "fp32", 0, cpu) == ("device", 0.0)
    monkeypatch.setattr(tiers, "available_bytes", lambda: 256 * 10**9 - 1)
    for configured, width in ((False, "width"), (True, "embedding.width")):
        said = rf"tables: .* need 238\.4 GiB .* 1 workers.* a smaller {width}$"
        with pytest.raises(UserError, match=said):
            find_tier("auto", specs, "sgd", "fp32", 0, cpu, configured=configured)


def find_on_cuda(
    monkeypatch: pytest.MonkeyPatch, wanted: Memory, free: int, host: int, rows: int
) -> tuple[Tier, float]:
    """On one worker with a made-up GPU."""
    monkeypatch.setattr(tiers, "free_bytes", lambda device: free)
    monkeypatch.setattr(tiers, "available_bytes", lambda: host)
    monkeypatch.setattr(tiers, "least_over_workers", lambda value, group: value)
    cuda = Group(0, 1, 1, torch.device("cuda"), None)  # type: ignore[arg-type]
    specs = [TableSpec("a", rows, 256)]
    return find_tier(wanted, specs, "sgd", "fp32", GIB, cuda, configured=True)


def test_with_a_gpu_its_memory_decides_and_then_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 10 * 2**20  # of a KiB each
    free = 11 * GIB
    assert find_on_cuda(monkeypatch, "auto", free, 0, rows * 7 // 10)[0] == "device"
    assert find_on_cuda(monkeypatch, "auto", free, 20 * GIB, rows) == ("uvm_caching", 0.2)
    assert find_on_cuda(monkeypatch, "uvm", free, 20 * GIB, rows)[0] == "uvm"
    for wanted in ("auto", "uvm", "uvm_caching"):
        with pytest.raises(
            UserError, match=r"need 10.0 GiB of host memory here.* embedding\.weights=fp16"
        ):
            find_on_cuda(monkeypatch, wanted, free, 9 * GIB, rows)  # type: ignore[arg-type]
        with pytest.raises(
            UserError, match=r"^1.00 GiB of every GPU are .* a smaller model.logits"
        ):
            find_on_cuda(monkeypatch, wanted, GIB - 1, 20 * GIB, rows)  # type: ignore[arg-type]


def test_the_user_is_told_in_one_line() -> None:
    assert tier_line("auto", "uvm_caching", "fp16", "bf16", "cuda") == (
        "tables: in host memory with a cache on the GPU (chosen by embedding.memory=auto), "
        "rows in fp16 rounded stochastically, exchanged in bf16"
    )
    assert tier_line("device", "device", "fp32", "fp32", "cuda") == (
        "tables: on the GPU, rows in fp32, exchanged in fp32"
    )
    assert tier_line("uvm", "uvm", "fp32", "fp32", "cuda").startswith(
        "tables: in host memory, read by the GPU, "
    )
    assert tier_line("auto", "device", "fp32", "fp32", "cpu").startswith("tables: in host memory,")
