"""The tables' memory tiers and narrow rows on a GPU: the same training, wherever the rows lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.of_tables import live_tensors, row_multipliers
from dist_embed.checkpoint.state import TrainingState
from dist_embed.embedding import sharded_tables as lookup_module
from dist_embed.embedding import tiers
from dist_embed.embedding.settings import Tier, Weights
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.table import Table
from dist_embed.embedding.tables import lies_in_host_memory
from dist_embed.embedding.tier_sizes import room_for_tables
from dist_embed.model.logit_tiles import LogitTiles
from dist_embed.model.next_words import ExactWords
from dist_embed.model.output import sharded_cross_entropy
from dist_embed.model.search import Searcher
from dist_embed.model.settings import SearchSection
from dist_embed.parallel.group import Group
from tests.distributed.savers import saver_of
from tests.distributed.tiny import Sharded, Tiny, random_pairs
from tests.gpu.device import IN_HOST_MEMORY, OPTIMIZERS, TIERS, WEIGHTS, on_cuda_alone

# A step looks up more rows than the cache of a fifth of them has room for: some are pushed out,
# some never come in. The output's table is trained whole, unless said otherwise.
ROWS = {"source": 2000, "target": 700, "output": 1100}
WIDTH = 16
Values = dict[str, Tensor]


def lookup_of(
    group: Group,
    rows: dict[str, int] = ROWS,
    *,
    width: int = WIDTH,
    optimizer: str = "rowwise_adagrad",
    learning_rate: float = 0.1,
    trained_whole: bool = True,
    own_rates: dict[str, float] | None = None,
    **how: Any,
) -> ShardedTables:
    named = {
        name: Table(
            count, width, initial_scale=0.1, learning_rate=(own_rates or {}).get(name),
            trained_whole=trained_whole and name == "output",
        )
        for name, count in rows.items()
    }  # fmt: skip
    return ShardedTables(
        named, group, optimizer=optimizer, learning_rate=learning_rate, seed=3, **how
    )


def train(lookup: ShardedTables, first: int, last: int) -> None:
    """Steps that depend on their numbers alone: rows, gradients and the draws for rounding."""
    device = lookup.group.device
    for step in range(first, last + 1):
        draw = torch.Generator().manual_seed(step)
        ids = {
            role: [torch.randint(rows, (700,), generator=draw).to(device)]
            for role, rows in ROWS.items()
        }
        torch.manual_seed(step)
        lookup.set_step(step)
        fetched = lookup.lookup(ids)
        for table in fetched.tables.values():
            table.vectors.grad = torch.randn(table.vectors.shape, generator=draw).to(device)
        for own in fetched.own.values():
            assert own.gradient is not None
            whole = own.gradient.begin_adding(torch.zeros(1, device=device))
            whole += torch.randn(whole.shape, generator=draw).to(device)
        fetched.backward()


def values_of(lookup: ShardedTables) -> Values:
    """Rows and optimizer state of every table, copied."""
    values: Values = {}
    for table in lookup.specs:
        values[f"{table}.weight"] = lookup.weight(table).clone()
        for name, state in lookup.optimizer_state(table).items():
            values[f"{table}.{name}"] = state.clone()
    return values


@torch.no_grad()
def looked_up(lookup: ShardedTables) -> Values:
    """All rows as a lookup gives them, in the order of rows, float32."""
    device = lookup.group.device
    ids = {
        role: [lookup.specs[role].order.ids_of(torch.arange(rows, device=device))]
        for role, rows in ROWS.items()
    }
    rows = lookup.lookup(ids)
    return {f"{role}.weight": rows.vectors(role, 0) for role in ROWS}


def check_equal(found: Values, expected: Values) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=f"{name} differs")


def check_lookups_give_the_rows(lookup: ShardedTables) -> None:
    for name, value in looked_up(lookup).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, lookup.weight(name.removesuffix(".weight")).float()), name


@pytest.mark.parametrize("tier", IN_HOST_MEMORY or ["device"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_in_host_memory_train_as_on_the_device(
    group: Group, tier: Tier, optimizer: str
) -> None:
    expected = lookup_of(group, optimizer=optimizer, memory="device")
    found = lookup_of(group, optimizer=optimizer, memory=tier)
    fresh = values_of(expected)
    check_equal(values_of(found), fresh)
    for lookup in (expected, found):
        train(lookup, 1, 5)
    assert not lies_in_host_memory(expected.weight("source"))
    assert lies_in_host_memory(found.weight("source")) == (tier in IN_HOST_MEMORY)
    assert not torch.equal(expected.weight("source"), fresh["source.weight"])
    check_equal(values_of(found), values_of(expected))
    check_lookups_give_the_rows(found)


@on_cuda_alone
def test_a_cache_holds_newer_rows_until_they_are_asked_for(group: Group) -> None:
    lookup = lookup_of(group, memory="uvm_caching")
    train(lookup, 1, 2)
    in_host = lookup._kernels.rows["source"].clone()
    up_to_date = lookup.weight("source").clone()
    assert not torch.equal(in_host, up_to_date)
    assert torch.equal(looked_up(lookup)["source.weight"], up_to_date)
    train(lookup, 3, 3)  # the flush has left the cache in use
    in_host = lookup._kernels.rows["source"].clone()
    assert not torch.equal(in_host, lookup.weight("source"))


@pytest.mark.parametrize("tier", TIERS)
def test_rows_that_are_written_are_what_training_goes_on_with(group: Group, tier: Tier) -> None:
    lookups = [lookup_of(group, memory="device"), lookup_of(group, memory=tier)]
    for lookup in lookups:
        train(lookup, 1, 3)
        with torch.no_grad():
            lookup.weight("source").mul_(-2.0)
            lookup.weight("output").fill_(0.25)
        lookup.after_writing()
        check_lookups_give_the_rows(lookup)
        train(lookup, 4, 6)
    check_equal(values_of(lookups[1]), values_of(lookups[0]))


@on_cuda_alone
@pytest.mark.parametrize("tier", TIERS)
def test_narrow_rows_stay_within_rounding(group: Group, tier: Tier) -> None:
    wide = lookup_of(group, memory="device")
    narrow = lookup_of(group, memory=tier, weights="fp16")
    for lookup in (wide, narrow):
        train(lookup, 1, 20)
    expected = values_of(wide)
    for name, value in values_of(narrow).items():
        if name.endswith(".weight"):
            assert value.dtype == torch.float16
            assert expected[name].abs().max() < 2
            # Values below 2 are 2^-10 apart or less. Each of at most twenty updates rounds up or
            # down: far fewer than twenty such distances add up.
            torch.testing.assert_close(value.float(), expected[name], rtol=0, atol=10 * 2**-10)
            assert not torch.equal(value.float(), expected[name])
        else:  # the state is float32 and does not depend on the rows
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
    check_lookups_give_the_rows(narrow)


@on_cuda_alone
@pytest.mark.parametrize("tier", TIERS)
def test_stochastic_rounding_is_unbiased(group: Group, tier: Tier) -> None:
    """Steps of a quarter of the distance of neighbours: to nearest, no row would ever move."""
    rows = {"source": 20_000, "target": 64, "output": 64}
    lookup = lookup_of(group, rows, optimizer="sgd", learning_rate=1.0, memory=tier, weights="fp16")
    with torch.no_grad():
        lookup.weight("source").fill_(1.0)
    lookup.after_writing()
    ids = torch.arange(rows["source"], device=group.device)
    below, update = 1 - 2**-11, 2**-13
    for step in range(1, 65):
        torch.manual_seed(step)
        fetched = lookup.lookup({"source": [ids]})
        leaf = fetched.tables["source"].vectors
        leaf.grad = torch.full_like(leaf, update)
        fetched.backward()
        if step == 1:
            weight = lookup.weight("source")
            assert set(weight.unique().tolist()) == {1.0, below}
            # 320,000 draws: the standard deviation of the share is 0.0008.
            assert (weight == below).double().mean().item() == pytest.approx(0.25, abs=0.01)
            by_column = (weight == below).double().mean(0)
            assert by_column.min() > 0.2  # 20,000 draws: 0.003
            assert by_column.max() < 0.3
    moved = 1 - lookup.weight("source").double().mean().item()
    assert moved == pytest.approx(64 * update, rel=0.01)


def training_state(lookup: ShardedTables, step: int = 0) -> TrainingState:
    return TrainingState(
        lookup.group,
        step,
        live_tensors(lookup, {}),
        row_multipliers(lookup),
        before_reading=lookup.before_reading,
        after_writing=lookup.after_writing,
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("saved_in", "loaded_in"),
    [(tier, tier) for tier in TIERS]
    + [("device", "uvm_caching"), ("uvm_caching", "device"), ("uvm", "uvm_caching")]
    * bool(IN_HOST_MEMORY),
)
def test_a_checkpoint_of_any_tier_goes_on_in_any(
    group: Group,
    tmp_path: Path,
    saved_in: Tier,
    loaded_in: Tier,
    weights: Weights,
    asynchronous: bool,
) -> None:
    """As if nothing had happened; the load finds a cache full of other rows."""
    lookup = lookup_of(group, memory=saved_in, weights=weights)
    train(lookup, 1, 3)
    saver = saver_of(group, str(tmp_path), [], asynchronous=asynchronous)
    saver.save(training_state(lookup, 3))
    train(lookup, 4, 4)  # what has been saved is the state before
    saver.wait()
    other = lookup_of(group, memory=loaded_in, weights=weights)
    train(other, 11, 13)
    # Without a copy of the tables where saving makes none either.
    state = training_state(other)
    load_newest(open_checkpoints(str(tmp_path)), state, pytest.fail, in_place=not asynchronous)
    assert state.step == 3
    check_lookups_give_the_rows(other)
    train(other, 4, 6)
    train(lookup, 5, 6)
    check_equal(values_of(other), values_of(lookup))


@pytest.mark.parametrize("memory", TIERS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("num_samples", [0, 6])
def test_the_whole_model_trains_and_is_evaluated(
    group: Group, memory: Tier, weights: Weights, num_samples: int
) -> None:
    plain = Sharded(Tiny(num_samples=num_samples), group)
    sharded = Sharded(Tiny(num_samples=num_samples, memory=memory, weights=weights), group)
    tolerance = 1e-5 if weights == "fp32" else 1e-2
    hidden = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)).to(group.device)
    targets = (torch.arange(40) % 31).to(group.device)
    for number in range(1, 5):
        pairs = random_pairs(9, number, 23, 31)
        loss = plain.step(number, pairs).loss
        assert sharded.step(number, pairs).loss == pytest.approx(loss, rel=tolerance)
        # The rows are read directly, in the middle of training.
        weight = sharded.lookup.weight(sharded.output_table)
        tiles = LogitTiles(hidden, weight, 1000)
        assert tiles._copied == (memory != "device" or weights != "fp32")
        with torch.no_grad():
            found, _ = sharded_cross_entropy(
                hidden, targets, weight, sharded.shard.in_float32(), [40]
            )
        logits = hidden.double() @ weight.double().t()
        expected = functional.cross_entropy(logits, targets, reduction="sum")
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        looked = sharded.lookup.lookup({"target": [torch.arange(31, device=group.device)]})
        rows = sharded.lookup.orders[sharded.output_table].rows_of(
            torch.arange(31, device=group.device)
        )
        assert torch.equal(looked.vectors("target", 0), weight[rows].float())
    check_search(sharded)


def check_search(sharded: Sharded) -> None:
    """That search gives what it gives with the same rows on the device, in float32."""
    same = Sharded(Tiny(num_samples=sharded.tiny.num_samples), sharded.group)
    same.transformer.load_state_dict(sharded.transformer.state_dict())
    with torch.no_grad():
        for table in sharded.lookup.specs:
            # Larger ones make a real choice.
            sharded.lookup.weight(table).mul_(8)
            same.lookup.weight(table).copy_(sharded.lookup.weight(table))
    answers = []
    for one in (sharded, same):
        one.lookup.after_writing()
        one.transformer.eval()
        searcher = Searcher(
            one.transformer, one.lookup, ExactWords(one.lookup, one.shard.in_float32()),
            SearchSection(beam=3, length_penalty=1.0, max_length_ratio=1.0, batch_tokens=8),
        )  # fmt: skip
        answers.append(searcher.translate([[4, 5], [6], [8, 8, 7, 4]]))
    assert answers[0] == answers[1]


def made_up(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """A device with that much free memory, and tables that are not filled, which takes long."""
    monkeypatch.setattr(tiers, "free_bytes", lambda device: free_bytes)
    monkeypatch.setattr(lookup_module, "fill_initial_rows", lambda *args, **kwargs: None)


@on_cuda_alone
def test_auto_takes_the_device_where_there_is_room(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = torch.cuda.get_device_properties(group.device).total_memory
    assert 0 < tiers.free_bytes(group.device) <= total
    assert lookup_of(group, memory="auto").tier == "device"
    rows = {"source": 400_000, "target": 64, "output": 64}  # 98 MiB, with state 99
    made_up(monkeypatch, 120 * 2**20)  # of which tables may take 96
    found = lookup_of(group, rows, width=64, memory="auto", trained_whole=False)
    assert found.tier == "uvm_caching"
    assert lies_in_host_memory(found.weight("source"))
    ids = torch.arange(1000, device=group.device)
    vectors = found.lookup({"source": [ids]}).vectors("source", 0)
    assert torch.equal(vectors, found.weight("source")[found.specs["source"].order.rows_of(ids)])


@on_cuda_alone
def test_a_cache_takes_no_more_than_its_room(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"source": 800_000, "target": 64, "output": 64}  # a fifth of them are 156 MiB
    made_up(monkeypatch, 130 * 2**20)  # of which tables may take 104
    lookup = lookup_of(group, rows, width=256, memory="uvm_caching", trained_whole=False)
    (kernel,) = lookup.kernels
    assert 0 < kernel.lxu_cache_weights.nbytes <= 104 * 2**20
    # The own kernel of a table trained whole has no cache, but its state on the device.
    made_up(monkeypatch, 190 * 2**20)
    lookup = lookup_of(
        group, rows | {"output": 400_000}, width=256, memory="uvm_caching", step_bytes=2**20
    )
    held = sum(state.nbytes for state in lookup.optimizer_state("output").values())
    caches = [k.lxu_cache_weights.nbytes for k in lookup.kernels if k.lxu_cache_weights.numel()]
    assert len(caches) == 1
    assert held + sum(caches) <= room_for_tables(190 * 2**20, 2**20)
    # Kernels of tables with other rates have equal shares of it.
    made_up(monkeypatch, 130 * 2**20)
    lookup = lookup_of(
        group, {"source": 400_000, "target": 400_000, "output": 64}, width=256,
        memory="uvm_caching", trained_whole=False, own_rates={"target": 0.2},
    )  # fmt: skip
    sizes = [k.lxu_cache_weights.nbytes for k in lookup.kernels]
    assert len(sizes) == 2
    assert min(sizes) > 0.9 * max(sizes)
    assert sum(sizes) <= 104 * 2**20
    made_up(monkeypatch, 2**40)
    lookup = lookup_of(group, memory="uvm_caching", trained_whole=False)
    (kernel,) = lookup.kernels
    assert kernel.lxu_cache_weights.shape[0] == pytest.approx(sum(ROWS.values()) / 5, abs=32)
