"""What a planned step waits for: the worker that is asked for most rows, its data, checkpoints; and
exchanges that it does not wait for. By hand, or against what benchmarks have found.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from dist_embed.bench.balance import expected_of_shards
from dist_embed.data.pool import pools_of_blocks
from dist_embed.data.pool_sizes import (
    PLANNING_SECONDS,
    POOL_SENTENCES,
    POOL_STEPS,
    pool_pairs,
)
from dist_embed.errors import UserError
from dist_embed.planning import Machine, Plan, load_machine, plan
from dist_embed.planning import step as step_module
from dist_embed.planning.estimate import estimated
from dist_embed.planning.machine import Gather, Link
from dist_embed.planning.memory import tables_on_device, worker_memory
from dist_embed.planning.page import (
    checkpoint_line,
    given,
    given_by_speed,
    pressures,
    remarks,
    verdict_lines,
)
from dist_embed.planning.phases import planned_phases
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.traffic import Network, traffic
from dist_embed.planning.waits import costs_with_waits
from tests.unit.planned import GPUS, SAMPLED, configured, machine, planned

CLIPPED: dict[str, Any] = {"train": {"clip_norm": 1.0}}
ON_HOST: dict[str, Any] = SAMPLED | {"embedding": {"memory": "uvm"}}
LARGE: dict[str, Any] = {
    "tokenizer": {"vocab_size": 10**8}, "embedding": {"width": 512},
    "model": {"width": 512, "feed_forward": 2048, "output": "sampled", "num_samples": "auto",
              "logits_block_mib": "auto"},
    "data": {"words": {"sentences": 10**9}, "synthetic": None},
}  # fmt: skip


@pytest.mark.parametrize(
    "how", [SAMPLED, CLIPPED, ON_HOST], ids=["sampled", "exact, clipped", "on the host"]
)
def test_a_step_waits_for_the_rows_of_the_worker_that_is_asked_for_most(
    how: dict[str, Any],
) -> None:
    """Three times the mean: twice more of what its rows take. With the exact output layer it
    updates its whole shard too, which nobody's asking makes longer.
    """
    step = planned(8, machine(GPUS), **how)
    of_row = 4 * step.config.embedding.width
    rows = sum(step.distinct_rows.values())
    row_seconds = of_row / step.machine.gathered_per_second(of_row)
    if how == ON_HOST:
        row_seconds += of_row / step.machine.host_link()
    sent, network = traffic(step), Network(step.machine, 8)

    def twice(times: int, size: float) -> Any:
        return pytest.approx(2 * (times * rows * row_seconds + network.sending("all_to_all", size)))

    step.__dict__["request_balance"] = 3.0
    costs, _ = costs_with_waits(step)
    found = {name: cost.hot for name, cost in costs.items() if cost.hot}
    # How long bags are is told in as many bytes however many rows are asked for.
    assert found.pop("ids exchange") == twice(0, 8 * rows * 7 / 8)
    assert found.pop("lookup") == twice(1, sent["vectors"])
    assert found.pop("table backward") == twice(2, sent["row gradients"])
    if how == CLIPPED:
        assert found.pop("gradient norm") == twice(2, sent["rows for clipping"])
    assert not found


@pytest.mark.parametrize(("workers", "told"), [(8, 1.004), (64, 1.027), (1024, 1.321)])
def test_rows_are_asked_for_as_the_benchmark_of_balance_has_it(workers: int, told: float) -> None:
    """docs/benchmarks/balance.md: 10⁶ rows, 8,192 tokens of one side on each worker."""
    sections: dict[str, Any] = {
        "tokenizer": {"vocab_size": 10**6}, "model": {"share_embeddings": "decoder"},
        "train": {"batch_tokens": round(8192 * workers / 0.893)},
    }  # fmt: skip
    step = planned(workers, **sections)
    expected = expected_of_shards(10**6, workers, 8192)
    assert expected.max() / expected.mean() == pytest.approx(told, abs=1e-3)
    # The sources' table has its rows in the same places, and is asked as often.
    assert step.request_balance == pytest.approx(told, rel=0.01)


def test_the_balance_is_of_all_rows_that_are_asked_for() -> None:
    """By hand, of two workers: words 0 to 999 of a shared table lie where the order has them, each
    as often as it is wanted; half as many negatives again, spread out, make it more even.
    """
    step = planned(4)
    shards = np.zeros(4)
    for group, likely in step.asked["shared"]:
        for word in range(group.first, group.first + group.count):
            shards[word * step.specs["shared"].order.multiplier % 1000 // 250] += likely
    assert step.request_balance == pytest.approx(shards.max() / shards.mean())
    assert sum(shards) == pytest.approx(step.distinct_rows["shared"])
    large = {"tokenizer": {"vocab_size": 10**6}}
    few = planned(512, **large, **SAMPLED)
    many = planned(512, **large, model={"output": "sampled", "num_samples": 500_000})
    assert planned(1).request_balance == 1
    assert 1 < many.request_balance < 0.5 * few.request_balance


@pytest.mark.parametrize("head", [0, 100])
def test_an_estimate_counts_words_once(head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each table, and once more with those of a head, whom nobody is asked for."""
    counted: list[str] = []
    for name in ("asked_words", "request_balance"):
        count = getattr(step_module, name)

        def counting(*given: Any, name: str = name, count: Any = count) -> Any:
            counted.append(name)
            return count(*given)

        monkeypatch.setattr(step_module, name, counting)
    step = planned(4, head=head, model={"share_embeddings": "decoder"}, **CLIPPED)
    estimated(step)
    ways = 2 if head else 1
    assert sorted(counted) == ["asked_words"] * len(step.specs) * ways + ["request_balance"]


def test_a_hot_row_is_named_with_what_a_replicated_head_would_give() -> None:
    slow = machine(gather=[Gather(row_bytes=32, gb_s=1e-6)], node_memory_gib=1000)
    found = plan(configured(tokenizer={"vocab_size": 10**6}, **SAMPLED), 512, slow)
    assert found.bottleneck.startswith("the worker that is asked for most rows: ")
    assert "; it is asked for " in found.bottleneck
    head = found.not_built[0]
    assert head.change.endswith("most frequent rows of each table on every worker")
    assert head.step_seconds < found.step_seconds
    told = verdict_lines(found)[-1]
    assert told.startswith(f"  not built: {head.change}: {1000 * head.step_seconds:,.1f} ms a step")
    fast = plan(configured(tokenizer={"vocab_size": 10**6}, **SAMPLED), 2, machine())
    # To which neither gives anything.
    assert len(fast.not_built) == 2
    assert not any("not built" in line for line in verdict_lines(fast))


def test_what_a_replicated_head_takes() -> None:
    """100 rows of 1,000 on each of 4 workers: nobody is asked for them, and their gradients are
    summed up.
    """
    step = planned(4, **SAMPLED)
    head = planned(4, **SAMPLED, head=100)
    assert head.distinct_rows["shared"] == pytest.approx(
        sum(group.count * likely for group, likely in step.asked["shared"] if group.first >= 100)
    )
    assert head.looked_up == pytest.approx(sum(step.distinct_rows.values()))
    assert head.head_rows == 100
    # A cache of a twentieth of the rows holds none that anybody is asked for.
    assert head.distinct_beyond(0.05) == head.distinct_rows["shared"]
    assert head.distinct_beyond(0.2) == step.distinct_beyond(0.2)
    sent, before = traffic(head), traffic(step)
    assert sent["gradients of the head"] == 2 * 4 * 8 * 100 * 3 / 4
    assert sent["vectors"] == pytest.approx(32 * head.distinct_rows["shared"] * 3 / 4)
    assert "gradients of the head" not in before
    costs, without = StepTime(head).costs(), StepTime(step).costs()
    assert costs["lookup"].memory == pytest.approx(without["lookup"].memory)
    # 16 threads of a worker; six passes over its values.
    more = costs["table backward"].memory - without["table backward"].memory
    assert more == pytest.approx(6 * 4 * 100 * 8 / 1e9 / 16)
    later = costs["table backward"].latency - without["table backward"].latency
    assert later == pytest.approx(2e-3)
    assert not plan(configured(), 1, machine()).not_built


def test_a_replicated_head_is_counted_where_rows_are_computed() -> None:
    """100 rows with the optimizer's value and a gradient, in float32."""
    more = 100 * (8 + 1 + 8) * 4
    without, head = (worker_memory(planned(4, **SAMPLED, head=rows)) for rows in (0, 100))
    assert head.device == without.device | {"rows on every worker": more}
    sections = SAMPLED | {"embedding": {"memory": "uvm"}}
    on = machine(GPUS)
    without, head = (worker_memory(planned(4, on, **sections, head=rows)) for rows in (0, 100))
    assert head.device == without.device | {"rows on every worker": more}
    assert head.host == without.host


def test_a_replicated_head_that_there_is_no_memory_for_does_not_fit() -> None:
    step = planned(4, **SAMPLED)
    exactly = step.machine.model_copy(
        update={"node_memory_gib": 4 * worker_memory(step).device_bytes / 2**30}
    )
    assert estimated(replace(step, machine=exactly)).fits
    assert not estimated(replace(step, machine=exactly, head=1)).fits
    found = plan(step.config, 4, exactly)
    head, apart = found.not_built
    assert (found.fits, head.fits, apart.fits) == (True, False, True)
    assert given_by_speed(head, found).endswith(", does not fit")
    assert not given_by_speed(apart, found).endswith("fit")


def test_of_replicated_heads_those_that_fit_come_first() -> None:
    """Where reading rows is what takes time, more are faster: 1,024 are all of them."""
    slow = machine(gather=[Gather(row_bytes=32, gb_s=1e-6)])
    step = planned(4, slow, **SAMPLED)
    assert plan(step.config, 4, slow).not_built[0].change.startswith("the 1,024 most")
    least = worker_memory(replace(step, head=256)).device_bytes
    tight = slow.model_copy(update={"node_memory_gib": 4 * least / 2**30})
    head = plan(step.config, 4, tight).not_built[0]
    assert head.change.startswith("the 256 most frequent")
    assert (head.fits, head.memory_bytes) == (True, least)


def test_a_cache_of_rows_has_the_room_that_a_replicated_head_leaves() -> None:
    """Tables take 0.8 of what is left: of 10⁷ rows of 8 values, each with 20 bytes beside it, that
    much less is in the cache.
    """
    step = planned(
        1, machine(GPUS, device_memory_gib=0.44), tokenizer={"vocab_size": 10**7},
        embedding={"memory": "uvm_caching"}, **SAMPLED,
    )  # fmt: skip
    (_, held, share), (_, less, smaller) = (
        tables_on_device(replace(step, head=rows)) for rows in (0, 100_000)
    )
    more = 0.8 * 100_000 * (8 + 1 + 8) * 4
    assert share - smaller == pytest.approx(more / (10**7 * (8 * 4 + 20)))
    assert held["cache of rows"] - less["cache of rows"] == pytest.approx(more, abs=2)


def test_planning_takes_what_the_benchmark_of_batches_has_found() -> None:
    """docs/benchmarks/balance.md: 4,096 tokens a worker, 24.0 ms of processor time a step."""
    step = planned(512, train={"batch_tokens": 4096 * 512}, tokenizer={"vocab_size": 10**6})
    assert 1000 * step.pairs * PLANNING_SECONDS == pytest.approx(24.0, rel=0.02)


def test_a_step_waits_for_its_data_where_planning_takes_longer() -> None:
    """By hand: of pairs of 28.2 target tokens each takes 0.365 µs, a thread beside the step."""

    def waiting(workers: int, on: Machine, tokens: int, **sections: Any) -> tuple[float, float]:
        step = planned(workers, on, train={"batch_tokens": tokens}, **sections)
        costs, _ = costs_with_waits(step)
        others = sum(cost.seconds - cost.data for cost in costs.values())
        planning = tokens * 0.893 / 28.2 * 3.27 / 8_947_848
        return costs["data wait"].data, planning - others + costs["checkpoint stall"].seconds

    gpus = machine(GPUS)
    assert waiting(8, gpus, 32768, **SAMPLED)[0] == 0
    found, by_hand = waiting(50, gpus, 10**9, **SAMPLED)
    assert found == pytest.approx(by_hand)
    assert found > 1
    # One core for one thread: nothing is beside anything.
    busy = machine(cores=2)
    found, _ = waiting(2, busy, 28_200, cluster={"threads_per_worker": 1})
    assert found == pytest.approx(893 * 3.27 / 8_947_848)
    assert waiting(1, busy, 28_200, cluster={"threads_per_worker": 1})[0] == 0


def test_planning_the_data_is_what_breaks_first_among_thousands() -> None:
    def found(workers: int) -> Plan:
        train = {"batch_tokens": 4096 * workers, "precision": "auto"}
        return plan(configured(**LARGE, train=train), workers, load_machine("8xh100"))

    few, many = found(8), found(4096)
    assert few.spent["data"] == 0
    assert many.bottleneck.startswith("planning the data: ")
    assert "every worker plans the batches of all, 531," in many.bottleneck
    said = f"{1000 * many.planning_seconds:,.1f} ms of each worker's processor time a step"
    assert any(said in line for line in pressures(many))
    apart = many.not_built[-1]
    assert apart.change == "each worker plans its part of the batches"
    assert apart.step_seconds == pytest.approx(many.step_seconds - many.spent["data"])
    assert any(apart.change in line for line in verdict_lines(many))
    # What gives nothing is told as well, but not named.
    assert few.not_built[-1].change == apart.change
    assert few.not_built[-1].step_seconds == few.step_seconds
    assert not any(apart.change in line for line in verdict_lines(few))


def test_what_is_planned_lies_in_the_memory_of_each_worker_s_host() -> None:
    """128 steps of 4,096 tokens a worker are 71.6 million pairs, so that 10⁹ are 14 pools: 80 bytes
    of each pair, and 480 of own tokens by 4,096 workers.
    """
    step = planned(4096, load_machine("8xh100"), **LARGE, train={"batch_tokens": 4096**2})
    held = worker_memory(step).host["prepared sentences"]
    assert held == pytest.approx(1e9 / 14 * (80 + 480 / 4096), rel=1e-6)
    # Of a text that is known, no more than it has.
    assert worker_memory(planned(2)).device["prepared sentences"] == 20_000 * (80 + 240)


@pytest.mark.parametrize(
    ("sentences", "pairs"), [(100, 100), (740_000, 740_000), (760_000, 380_000), (None, 500_000)]
)
def test_a_pool_is_as_large_as_the_loader_makes_it(sentences: int | None, pairs: int) -> None:
    assert pool_pairs(4096, sentences) == pairs
    if sentences is None:
        return
    lengths = np.full(100, sentences // 100)
    blocks = MagicMock(sentences=lengths, source_tokens=9 * lengths, target_tokens=lengths)
    blocks.__len__.return_value = len(lengths)
    pools = pools_of_blocks(blocks, POOL_SENTENCES, POOL_STEPS * 4096, np.random.default_rng(1))
    assert max(lengths[pool].sum() for pool in pools) == pairs


def test_ids_travel_while_a_gpu_updates() -> None:
    step = planned(8, machine(GPUS, within_node=Link(latency_us=1, gb_s=1e-3)), **SAMPLED)
    time = StepTime(step)
    found, network = time.costs(), Network(step.machine, 8)
    whole = 2 * network.latency("all_to_all") + network.sending("all_to_all", traffic(step)["ids"])
    beside = found["optimizer"].work + found["table backward"].work
    assert 0 < beside < whole
    assert found["ids exchange"].exchange == pytest.approx(whole - beside)
    on_cpu = planned(2, **SAMPLED)
    network = Network(on_cpu.machine, 2)
    assert StepTime(on_cpu).costs()["ids exchange"].exchange == pytest.approx(
        2 * network.latency("all_to_all") + network.sending("all_to_all", traffic(on_cpu)["ids"])
    )


@pytest.mark.parametrize("accumulate", [1, 4])
def test_negatives_travel_while_a_gpu_computes(accumulate: int) -> None:
    on = machine(GPUS, within_node=Link(latency_us=1, gb_s=1e-5), operation_us=0)
    step = planned(8, on, **SAMPLED, train={"accumulate": accumulate})
    found, network, sent = StepTime(step).costs(), Network(on, 8), traffic(step)
    first = (found["encoder"].work + found["decoder"].work) / accumulate
    whole = (
        network.latency("all_gather") + network.sending("all_gather", sent["negatives"])
        + network.latency("all_to_all")
        + network.sending("all_to_all", sent["gradients of negatives"])
    )  # fmt: skip
    # The first forward, and half of the last backward, which takes twice as long.
    assert found["output"].exchange == pytest.approx(whole - first - first)


def test_clipping_multiplies_all_gradients() -> None:
    step, plain = planned(1, **CLIPPED), planned(1)
    more = StepTime(step).costs()["optimizer"].memory - StepTime(plain).costs()["optimizer"].memory
    values = step.parameters + sum(step.distinct_rows.values()) * 8 + 1000 * 8
    assert more == pytest.approx(2 * 4 * values / 1e9 / 64)


def test_tiles_of_a_gpu_are_square() -> None:
    """64 MiB of logits: 4,096 tokens by 4,096 rows, where a CPU takes 256 tokens."""
    sections: dict[str, Any] = {
        "tokenizer": {"vocab_size": 10**6}, "train": {"batch_tokens": 2**17},
        "model": {"logits_block_mib": 64},
    }  # fmt: skip
    on = machine(GPUS, operation_us=1000)
    step = planned(8, on, **sections)
    assert step.by_tiles
    assert (step.tile_tokens, planned(8, **sections).tile_tokens) == (4096, 256)
    cost = StepTime(step).costs()["output"]
    tiles = step.target_tokens / 4096 * 125_000 / 4096
    expected = 24 * tiles * 1e-3 - cost.compute - cost.memory
    assert cost.operations == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_tile_has_no_more_tokens_than_a_micro_batch(accumulate: int) -> None:
    """Of fewer tokens a tile has more rows: 64 MiB are 2²⁴ logits, a micro-batch's with as many
    rows as go in.
    """
    sections: dict[str, Any] = {
        "tokenizer": {"vocab_size": 10**6},
        "train": {"batch_tokens": 1000, "accumulate": accumulate},
        "model": {"logits_block_mib": 64},
    }  # fmt: skip
    step = planned(8, machine(GPUS, operation_us=1000), **sections)
    assert step.by_tiles
    assert step.tile_tokens == pytest.approx(893 / accumulate)
    cost = StepTime(step).costs()["output"]
    tiles = accumulate * max(1, 893 / accumulate * 125_000 / 2**24)
    assert cost.operations == pytest.approx(24 * tiles * 1e-3 - cost.compute - cost.memory)


SAVES: dict[str, Any] = {
    "tokenizer": {"vocab_size": 10**8}, "embedding": {"width": 512},
    "model": {"output": "sampled", "num_samples": 100, "logits_block_mib": "auto"},
}  # fmt: skip


def test_checkpoints_that_training_waits_for_are_the_limit_that_is_named() -> None:
    gpus = load_machine("8xh100")
    waiting = configured(**SAVES, checkpoint={"saving": "waiting", "every_steps": 500})
    found = plan(waiting, 8, gpus)
    stall = found.checkpoint.stall_seconds
    assert found.phases["checkpoint stall"] == found.spent["stall"] == pytest.approx(stall / 500)
    share = found.spent["stall"] / found.step_seconds
    assert found.bottleneck == f"checkpoints: {share:.0%} of a step, {stall:,.1f} s each 500 steps"
    remedies = {one.change: one for one in found.remedies}
    assert found.remedies[0].change == "checkpoint.saving=behind"
    rarer = remedies["checkpoint.every_steps=5000"]
    assert found.step_seconds - rarer.step_seconds == pytest.approx(0.9 * stall / 500)
    by_clock = configured(**SAVES, checkpoint={"saving": "waiting", "every_minutes": 1.0})
    assert any(
        one.change == "checkpoint.every_minutes=10.0" for one in plan(by_clock, 8, gpus).remedies
    )


def test_there_are_no_more_checkpoints_than_can_be_written() -> None:
    """One that is due while another is under way is made once that has ended."""
    store = machine().store.model_copy(update={"put_gb_s": 1e-6})
    step = planned(2, machine(store=store), checkpoint={"saving": "behind", "every_steps": 1})
    found = estimated(step)
    one, alone = found.checkpoint, found.step_seconds - found.phases["checkpoint stall"]
    assert one.due_steps == 1
    assert one.steps == pytest.approx((one.seconds - one.stall_seconds) / alone)
    assert one.steps > 1.5
    assert found.phases["checkpoint stall"] == pytest.approx(one.stall_seconds / one.steps)
    assert f"due each 1 steps, but one takes as long as {one.steps:,.0f}" in checkpoint_line(one)
    assert checkpoint_line(one) in remarks(found)
    rare = estimated(planned(2, checkpoint={"saving": "behind", "every_steps": 10**6})).checkpoint
    assert rare.steps == rare.due_steps == 10**6
    assert "due each" not in checkpoint_line(rare)
    none = estimated(planned(2)).checkpoint
    assert (none.due_steps, none.steps) == (None, None)


def test_a_plan_is_read_as_it_was_written() -> None:
    found = plan(configured(**SAVES), 8, load_machine("8xh100"))
    assert found.remedies
    assert found.not_built
    assert Plan.from_dict(found.as_dict()) == found


def test_workers_that_rows_cannot_feed_are_refused() -> None:
    """Of 1,000 rows two lie on each of 500 workers: of 600 a hundred would have none."""
    said = "workers: 600 is not allowed: table 'shared' has 1,000 rows, 2 on each of 500 workers"
    with pytest.raises(UserError, match=said):
        plan(configured(), 600, machine())
    assert plan(configured(), 500, machine()).rows_per_worker == (2, 2)
    assert plan(configured(), 1000, machine()).rows_per_worker == (1, 1)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_table_of_too_many_rows_is_refused(workers: int) -> None:
    with pytest.raises(UserError, match=r"tokenizer.vocab_size: table 'shared' would have 2,147,4"):
        plan(configured(tokenizer={"vocab_size": 2**31}), workers, machine(GPUS))


def test_a_remedy_is_told_by_what_lacks() -> None:
    found = plan(
        configured(tokenizer={"vocab_size": 10**7}, embedding={"width": 64, "optimizer": "adam"},
                   checkpoint={"saving": "behind"}, **SAMPLED),
        2, machine(GPUS, node_memory_gib=4.0),
    )  # fmt: skip
    remedy = next(one for one in found.remedies if one.change == "checkpoint.saving=in_place")
    gib = remedy.host_memory_bytes / 2**30
    assert given(remedy, found).startswith(f"{gib:,.2f} GiB instead of ")
    assert given(remedy, found).endswith(" on the host, fits")


def test_phases_beside_those_of_a_run_are_of_one_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its changes each is another."""
    config, estimates = configured(cluster={"num_workers": 2}), []
    expected = plan(config, 2, load_machine("cpu"))

    def counting(step: Any) -> Any:
        estimates.append(step)
        return costs_with_waits(step)

    monkeypatch.setattr("dist_embed.planning.estimate.costs_with_waits", counting)
    found = planned_phases(config, "cpu")
    assert len(estimates) == 1
    assert found.machine == f"cpu ({load_machine('cpu').source})"
    assert found.seconds == expected.phases
    assert sum(found.seconds.values()) == pytest.approx(expected.step_seconds)
