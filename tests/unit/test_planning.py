"""Plans against figures computed by hand, and what must hold of all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data.prepare import read_occurrences
from dist_embed.data.token_blocks import TokenBlocks
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.words_folder import write_words_folder
from dist_embed.embedding.memory import READING_BYTES, table_bytes
from dist_embed.errors import UserError
from dist_embed.observe.phase_names import PHASES, PhaseName
from dist_embed.planning import Plan, plan
from dist_embed.planning.balance import rows_per_worker
from dist_embed.planning.checkpoint import checkpoint_plan
from dist_embed.planning.estimate import estimated
from dist_embed.planning.machine import Exchange
from dist_embed.planning.memory import worker_memory
from dist_embed.planning.page import overview, verdict_lines
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.step import Step
from dist_embed.planning.text import text_of
from dist_embed.planning.traffic import Network, traffic
from dist_embed.training.needs import dense_parameters, host_bytes
from tests.unit.planned import GPUS, SAMPLED, configured, machine, planned

MIB = 2**20


def test_memory_is_that_of_the_check_before_a_run() -> None:
    step = planned(2)
    expected = host_bytes(
        step.config, step.text.vocabulary_size, training=True, narrow_products=False, tier=None,
        word_tables=True, sentences=20_000,
    )  # fmt: skip
    # But for the process, of which the machine file tells.
    assert worker_memory(step).device_bytes == expected - 412 * MIB


def test_memory_by_part() -> None:
    parts = worker_memory(planned(2)).device
    dense = 4 * dense_parameters(configured().model, 8)
    assert parts["process"] == 100 * MIB + READING_BYTES["local"]
    assert parts["rows"] == 500 * 8 * 4
    assert parts["optimizer of tables"] == 500 * 4
    assert parts["dense model"] == parts["dense gradients"] == dense
    assert parts["AdamW"] == 2 * dense
    assert parts["logits"] == MIB
    assert parts["gradient of all rows"] == 500 * 8 * 4
    # 1,000 tokens: hidden states, gradient, what comes back and its sum; the numbers of a block.
    assert parts["tokens of all workers"] == 1000 * 8 * (4 + 8 + 2) + (2**20 // 2000) * 16 * 2


def test_all_workers_tokens_are_what_breaks_the_exact_output() -> None:
    found = plan(
        configured(
            tokenizer={"vocab_size": 10**8}, embedding={"width": 512},
            train={"batch_tokens": 4096 * 4096},
        ), 4096, machine(GPUS),
    )  # fmt: skip
    assert found.lacking == "device"
    # 24,415 rows a worker: 1 MiB of logits are 10 tokens, so by tiles; then the numbers are most.
    tokens = 4096**2
    assert found.memory["tokens of all workers"] == tokens * (512 * 4 + 16 * 4096)
    assert "the largest part is tokens of all workers" in found.bottleneck
    before = found.memory_bytes
    halved = next(one for one in found.remedies if one.change == "train.accumulate=2")
    assert before - halved.memory_bytes > tokens * (512 * 4 + 16 * 4096) // 2 - 2**30


def test_what_clipping_takes() -> None:
    clipped = {"train": {"clip_norm": 1.0}}
    step, rows = planned(4, **clipped), sum(planned(4).distinct_rows.values())
    more = {k: v for k, v in traffic(step).items() if k not in traffic(planned(4))}
    assert more["counts for clipping"] == 8 * 1 * 4 * 3
    assert more["rows for clipping"] == pytest.approx((8 + 32) * rows * 3 / 4)
    assert len(more) == 2
    assert worker_memory(step).device["counts for clipping"] == 48 * 16
    norm, without = (StepTime(one).costs()["gradient norm"] for one in (step, planned(4)))
    # 16 threads each: the own shard's gradient is read, rows are put in order and added up.
    values = 250 * 8 + 4 * 8 * rows
    read = 4 * values / 1e9 / 16 + 2 * rows * 32 / 1e9 / 16
    assert norm.memory - without.memory == pytest.approx(read)
    assert norm.operations - without.operations == pytest.approx(1e-7 * 16)
    # A gather over 4 workers is 2 ms, each of two exchanges 1 ms.
    assert norm.latency - without.latency == pytest.approx(4e-3)
    assert norm.network - without.network == pytest.approx(sum(more.values()) / 1e9)
    alone = [StepTime(planned(1, **how)).costs()["gradient norm"] for how in (clipped, {})]
    assert alone[0].memory - alone[1].memory == pytest.approx(4 * 1000 * 8 / 1e9 / 64)


def test_clipping_breaks_first_among_many_workers() -> None:
    sections: dict[str, Any] = {"tokenizer": {"vocab_size": 10**7}, **SAMPLED}
    sections["train"] = {"clip_norm": 1.0, "batch_tokens": 4096 * 1000}
    found = plan(configured(**sections), 4096, machine(GPUS, node_memory_gib=4096))
    assert "'gradient norm'" in found.bottleneck
    assert found.remedies[0].change == "train.clip_norm=0.0"


def test_a_gpu_holds_tables_and_step_and_its_host_the_copy() -> None:
    step = planned(2, machine(GPUS), checkpoint={"saving": "behind"})
    memory = worker_memory(step)
    spec = step.output.table
    assert memory.device["rows"] + memory.device["optimizer of tables"] == table_bytes(
        spec, "rowwise_adagrad", 2
    )
    assert memory.device["process"] == 200 * MIB
    assert memory.host["copy for checkpoints"] >= table_bytes(spec, "rowwise_adagrad", 2)
    assert not memory.lacking


@pytest.mark.parametrize(("vocabulary", "where"), [(10**6, "rows"), (3 * 10**8, "cache of rows")])
def test_rows_that_a_gpu_cannot_hold_lie_on_its_host(vocabulary: int, where: str) -> None:
    sections = {"tokenizer": {"vocab_size": vocabulary}, "embedding": {"width": 32}, **SAMPLED}
    memory = worker_memory(planned(2, machine(GPUS), **sections))
    assert where in memory.device
    assert ("rows" in memory.host) == (where != "rows")


def test_traffic_by_hand() -> None:
    step = planned(4)
    rows = sum(step.distinct_rows.values()) * 3 / 4
    tokens = step.target_tokens / 4
    assert traffic(step) == pytest.approx(
        {
            "ids": 8 * (rows + 3), "vectors": 32 * rows, "row gradients": 32 * rows,
            "dense gradients": 2 * 4 * dense_parameters(step.config.model, 8) * 3 / 4,
            "hidden states": (32 + 8) * tokens * 3, "gradients of hidden states": 32 * tokens * 3,
            "numbers of logits": 16 * 4 * tokens * 3,
        }
    )  # fmt: skip
    assert set(traffic(planned(1)).values()) == {0.0}


def test_negatives_are_looked_up_once_and_sent_to_all() -> None:
    sent = traffic(planned(4, **SAMPLED))
    assert sent["negatives"] == sent["gradients of negatives"] == 4 * 8 * 25 * 3


def test_on_a_gpu_the_lengths_of_bags_are_sent_before_ids() -> None:
    step = planned(4, machine(GPUS), model={"share_embeddings": "none"})
    rows = sum(step.distinct_rows.values()) * 3 / 4
    assert traffic(step)["ids"] == pytest.approx(8 * (rows + 2048 * 3 * 3))


def test_what_goes_to_other_nodes() -> None:
    network = Network(machine(GPUS), 16)
    assert network.links({"ids": 150.0}) == {"within a node": 70.0, "between nodes": 80.0}
    # What is gathered enters a node once, over eight links.
    assert network.links({"negatives": 150.0}) == {"within a node": 140.0, "between nodes": 10.0}
    both = network.links({"dense gradients": 160.0, "ids": 150.0})
    assert both == {"within a node": 140.0 + 70.0, "between nodes": 20.0 + 80.0}
    assert network.latency("all_gather") == pytest.approx((3 * 1 + 10) * 1e-6)
    # 7 of 15 parts at 100 GB/s, 8 at 10.
    assert network.sending("all_to_all", 15e9) == pytest.approx(0.8)
    # 56 of 63 parts enter a node, an eighth of them over each link.
    assert Network(machine(GPUS), 64).sending("all_gather", 63e9) == pytest.approx(0.7)
    assert Network(machine(GPUS), 64).sending("all_to_all", 63e9) == pytest.approx(5.6)
    # A ring for each of a node's 8 workers, each over its own link.
    assert network.sending("all_reduce", 16e9) == pytest.approx(0.2)
    assert Network(machine(GPUS), 1).latency("all_reduce") == 0


def test_each_peer_gets_a_message_of_its_own() -> None:
    def with_peers(us: float, link: str) -> dict[str, Any]:
        given = getattr(machine(GPUS), link)
        return {link: given.model_copy(update={"peer_us": us})}

    gpus = machine(GPUS, **with_peers(0.5, "within_node"), **with_peers(2.0, "between_nodes"))
    assert Network(gpus, 8).latency("all_to_all") == pytest.approx((1 + 0.5 * 7) * 1e-6)
    found = Network(gpus, 64).latency("all_to_all")
    assert found == pytest.approx((1 + 0.5 * 7 + 10 + 2 * 56) * 1e-6)
    assert Network(gpus, 64).latency("all_gather") == pytest.approx((3 + 3 * 10) * 1e-6)
    one = {"kind": "all_to_all", "workers": 4, "latency_us": 100.0, "gb_s": 1.0}
    measured = gpus.model_copy(update={"exchanges": [Exchange.model_validate(one)]})
    assert Network(measured, 8).latency("all_to_all") == pytest.approx((100 + 0.5 * 4) * 1e-6)


def test_projections_between_widths_are_products() -> None:
    step, alike = planned(2, model={"width": 16}), planned(2, embedding={"width": 16},
                                                           model={"width": 16})  # fmt: skip
    for side, projections in (("encoder", 1), ("decoder", 2)):
        found, without = (StepTime(one).costs()[side].compute for one in (step, alike))
        assert found - without == pytest.approx(projections * 2 * 500 * 8 * 16 / 1e9 / 32)


def test_the_exact_output_takes_six_operations_for_each_token_row_and_value() -> None:
    step = planned(2, tokenizer={"vocab_size": 100_000}, embedding={"width": 8})
    spent = StepTime(step).costs()["output"]
    products = 6 + 2 * step.by_tiles
    # With 64 cores for 2 workers each has 32 threads.
    flops = products * step.target_tokens * 50_000 * 8
    assert spent.compute == pytest.approx(flops / 1e9 / 32)
    assert spent.latency > 0


def test_each_micro_batch_has_exchanges_of_its_own() -> None:
    found = [
        StepTime(planned(2, train={"accumulate": parts})).costs()["output"].latency
        for parts in (1, 4)
    ]
    # Two gathers and one back of 1 ms each, and a gather for each block of 524 tokens: 893 are in
    # the step, 223 in a micro-batch.
    assert found == pytest.approx([(3 + 893 / 524) * 1e-3, 4 * (3 + 1) * 1e-3])


def test_phases_are_those_that_a_run_records_and_add_up() -> None:
    found = plan(configured(), 2, machine())
    assert set(found.phases) == set(PHASES)
    assert sum(found.phases.values()) == pytest.approx(found.step_seconds)
    assert found.tokens_per_second == pytest.approx(1000 * 0.95 * 0.94 / found.step_seconds)


def test_prepared_data_are_asked(tmp_path: Path) -> None:
    sizes = {"source": 5000, "target": 5000}
    folder = str(tmp_path / "data")
    data = write_words_folder(folder, sizes, sentences=400, length=15)
    config = configured(data={"uri": folder}, tokenizer={"vocab_size": 10**6})
    found = plan(config, 2, machine())
    assert found.prepared
    assert found.rows_per_worker == (2500, 2500)
    # With its end a target sentence has 16 tokens, the longer side.
    assert found.tokens_per_second == pytest.approx(1000 * 0.95 / found.step_seconds)
    often = read_occurrences(data, ["source", "target"])
    assert often is not None
    text = np.repeat(np.arange(5000), often)
    draw, tokens = np.random.default_rng(0), round(500 * 0.95 * (15 / 16 + 1))
    distinct = np.mean([len(set(draw.choice(text, tokens).tolist())) for _ in range(20)])
    assert found.distinct_rows == pytest.approx(distinct, rel=0.03)


def test_a_step_is_as_full_as_the_longer_sides_of_pairs_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "data")
    write_words_folder(folder, {"source": 50, "target": 50}, sentences=400, length=15)
    # Of two pairs, with its end, the longer sides have 30 and 16, the targets 16 each.
    lengths = np.array([30, 2]), np.array([15, 15])
    monkeypatch.setattr(TokenBlocks, "lengths", lambda blocks, some: lengths)
    found = text_of(configured(data={"uri": folder}))
    monkeypatch.setattr(PreparedData, "read", None)  # once is enough for all plans
    assert text_of(configured(data={"uri": folder})) == found
    assert found.target_share == pytest.approx(0.95 * 32 / 46)
    assert found.source_share == pytest.approx(0.95 * 32 / 46 * 15 / 16)


@pytest.mark.parametrize("target", [50, 60])
def test_data_of_two_vocabularies_are_not_planned_as_one(tmp_path: Path, target: int) -> None:
    folder = str(tmp_path / "data")
    write_words_folder(folder, {"source": 50, "target": target}, shared=False, sentences=40)
    with pytest.raises(UserError, match=r"tokenizer\.shared=false: not allowed with model\.share"):
        text_of(configured(data={"uri": folder}, model={"share_embeddings": "all"}))
    text_of(configured(data={"uri": folder}, model={"share_embeddings": "decoder"}))


def test_a_checkpoint_by_hand() -> None:
    step = planned(2, checkpoint={"saving": "waiting"})
    dense = 12 * dense_parameters(step.config.model, 8)
    found = checkpoint_plan(step, 1.0)
    assert found.bytes == 1000 * 36 + dense
    assert found.worker_bytes == 500 * 36
    # Read, to see that all is finite; written; digested by each worker, 10⁹ bytes a second each.
    own = 500 * 36 + dense
    expected = (own + found.bytes + own) / 1e9
    assert found.seconds == found.stall_seconds == pytest.approx(expected)


def test_a_copy_of_a_gpu_s_tables_goes_over_its_link() -> None:
    step = planned(2, machine(GPUS), checkpoint={"saving": "behind"})
    own = 500 * 36 + 12 * dense_parameters(step.config.model, 8)
    assert checkpoint_plan(step, 1.0).stall_seconds == pytest.approx(own / 1e12 + own / 50e9)
    step = planned(2, checkpoint={"saving": "behind"})
    assert checkpoint_plan(step, 1.0).stall_seconds == pytest.approx(own / 1e9 + 2 * own / 1e9)


def test_rows_on_the_host_of_a_gpu_come_over_its_link() -> None:
    def lookup(memory: str, phase: PhaseName = "lookup", **sections: Any) -> tuple[float, Step]:
        given = {"embedding": {"width": 8, "memory": memory}, **SAMPLED, **sections}
        step = planned(2, machine(GPUS), **given)
        return StepTime(step).costs()[phase].memory, step

    (there, step), (here, _), (some, cached) = map(lookup, ("device", "uvm", "uvm_caching"))
    rows = sum(step.distinct_rows.values())
    assert here - there == pytest.approx(rows * 32 / 50e9)
    # The most frequent fifth of the words is in the cache.
    assert some - there == pytest.approx(cached.distinct_beyond(0.2) * 32 / 50e9)
    assert 0 < cached.distinct_beyond(0.2) < cached.distinct_beyond(0.0) == pytest.approx(rows)
    exact = [lookup(one, "output", model={})[0] for one in ("device", "uvm")]
    # By tiles, which go through the rows twice.
    assert exact[1] - exact[0] == pytest.approx(2 * 500 * 32 / 50e9)


def test_checkpoints_by_the_clock_stall_too() -> None:
    def stalls(**settings: Any) -> float:
        return estimated(planned(2, checkpoint=settings)).phases["checkpoint stall"]

    seconds = estimated(planned(2)).step_seconds
    each = checkpoint_plan(planned(2), seconds).stall_seconds
    assert stalls(every_minutes=0.5) == pytest.approx(each * seconds / 30)
    assert stalls(every_steps=10) == pytest.approx(each / 10)
    assert stalls(every_steps=10, every_minutes=1000) == pytest.approx(each / 10)


def test_what_train_refuses_does_not_fit() -> None:
    sections = {"tokenizer": {"vocab_size": 10**7}, "train": {"batch_tokens": 10**8}}
    huge = machine(GPUS, device_memory_gib=1e6, node_memory_gib=1e6)
    found = plan(configured(**sections, embedding={"width": 512}), 2, huge)
    # 0.3 · 10⁸ tokens · 5 · 10⁶ rows · 512 values · 6 FLOP at 2.25 · 10¹⁵ a second.
    assert "would take 3.4 minutes or more" in found.refused
    assert (found.lacking, found.fits) == ("", False)
    assert found.bottleneck.startswith("refused, whatever memory there is: model.output: 'exact'")
    assert any(one.change == "model.output=sampled" and one.fits for one in found.remedies)
    assert overview([found])[1][0][3] == "refused"
    assert verdict_lines(found)[0].startswith("2 workers: refused. First limit: refused,")
    threads = configured(cluster={"threads_per_worker": 2}, train={"batch_tokens": 3 * 10**6})
    # Two threads of a CPU: 0.3 · 3 · 10⁶ · 500 · 8 · 6 FLOP are little.
    assert not plan(threads, 2, machine()).refused


def test_a_host_that_lacks_memory_is_what_is_told() -> None:
    found = plan(
        configured(tokenizer={"vocab_size": 10**7}, embedding={"width": 64, "optimizer": "adam"},
                   checkpoint={"saving": "behind"}, **SAMPLED),
        2, machine(GPUS, node_memory_gib=4.0),
    )  # fmt: skip
    assert found.lacking == "host"
    assert "the largest part is copy for checkpoints" in found.bottleneck
    remedies = [one for one in found.remedies if not one.change.startswith("cluster")]
    fitting = [one.host_memory_bytes for one in remedies if one.fits]
    assert fitting == sorted(fitting)
    assert fitting[0] < found.host_memory_bytes
    assert any(one.change == "checkpoint.saving=in_place" for one in remedies)
    assert any(line.endswith("on the host, fits") for line in verdict_lines(found))


def test_rows_lie_as_the_tables_have_them() -> None:
    assert rows_per_worker(planned(3).specs.values(), 3) == (332, 334)
    assert rows_per_worker(planned(1000).specs.values(), 1000) == (1, 1)


def test_what_does_not_fit_is_said_with_what_would() -> None:
    found = plan(
        configured(tokenizer={"vocab_size": 10**8}, embedding={"width": 512}), 2,
        machine(GPUS),
    )  # fmt: skip
    assert not found.fits
    assert found.bottleneck.startswith("memory: ")
    assert found.remedies[0].change.startswith("cluster.num_workers=")
    assert found.remedies[0].fits
    assert all(remedy.memory_bytes > 0 for remedy in found.remedies)


def test_a_bottleneck_is_named_by_what_most_time_goes_to() -> None:
    slow = machine(within_node=machine().within_node.model_copy(update={"latency_us": 1e6}))
    assert plan(configured(), 2, slow).bottleneck.startswith("the latency of exchanges: ")
    assert plan(configured(), 1, machine(memory_gb_s=1e-6)).bottleneck.startswith(
        "reading and writing memory: "
    )


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_are_a_number(workers: object) -> None:
    with pytest.raises(UserError, match="workers"):
        plan(configured(), workers, machine())  # type: ignore[arg-type]


def test_no_more_workers_than_rows() -> None:
    assert plan(configured(), 1000, machine()).rows_per_worker == (1, 1)
    with pytest.raises(UserError, match="workers: 1001 is not allowed: table 'shared' has"):
        plan(configured(), 1001, machine())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(20_000, 10**7), st.sampled_from([8, 64, 512]), st.integers(1, 64),
    st.sampled_from(["exact", "sampled"]), st.sampled_from([None, GPUS]),
)  # fmt: skip
def test_more_workers_hold_less_each(
    vocabulary: int, width: int, workers: int, output: str, gpus: str | None
) -> None:
    on = machine(gpus) if gpus else machine()
    sections = {
        "tokenizer": {"vocab_size": vocabulary},
        "embedding": {"width": width},
        "model": {"output": output, "num_samples": 100},
    }
    few, many = (estimated(planned(number, on, **sections)) for number in (workers, 2 * workers))

    def held(found: Plan, part: str) -> int:  # where fewer workers had no room on their GPUs
        return found.memory.get(part, 0) + found.host_memory.get(part, 0)

    for part in ("rows", "optimizer of tables"):
        assert held(many, part) <= held(few, part)
    assert many.rows_per_worker[1] <= few.rows_per_worker[1]
    assert many.distinct_rows <= few.distinct_rows * (1 + 1e-9)
    assert many.checkpoint.worker_bytes <= few.checkpoint.worker_bytes
    assert min(few.phases.values()) >= 0
    assert json.loads(json.dumps(few.as_dict()))["workers"] == workers


def test_a_billion_rows_are_planned_without_torch_in_little_memory() -> None:
    code = """
import sys
from dist_embed.bench.memory import peak_bytes
from dist_embed.config.load import config_from_dict
from dist_embed.planning import load_machine, plan
config = config_from_dict({
    "run": {"uri": "/nowhere/run"}, "data": {"synthetic": {}}, "train": {"max_steps": 1},
    "tokenizer": {"vocab_size": 10**9}, "embedding": {"width": 512},
    "model": {"output": "sampled", "num_samples": "auto"},
})
found = plan(config, 1024, load_machine("8xh100"))
assert found.rows_per_worker[1] == 2 * 976563
print([name for name in ("torch", "numpy", "pyarrow") if name in sys.modules])
print(peak_bytes() // 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, mib = done.stdout.split("\n", 1)
    assert imported == "[]"
    assert int(mib) < 300
