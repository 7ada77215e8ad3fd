"""Plans against figures computed by hand, and what must hold of all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_embed.data.prepare import read_occurrences
from dist_embed.data.words_folder import write_words_folder
from dist_embed.embedding.memory import READING_BYTES, table_bytes
from dist_embed.errors import UserError
from dist_embed.observe.phase_names import PHASES
from dist_embed.planning import plan
from dist_embed.planning.balance import request_balance, rows_per_worker
from dist_embed.planning.checkpoint import checkpoint_plan
from dist_embed.planning.estimate import estimated
from dist_embed.planning.memory import worker_memory
from dist_embed.planning.seconds import StepTime
from dist_embed.planning.traffic import Network, traffic
from dist_embed.training.needs import dense_parameters, host_bytes
from tests.unit.planned import GPUS, SAMPLED, configured, machine, planned

MIB = 2**20


def test_memory_is_that_of_the_check_before_a_run() -> None:
    step = planned(2)
    expected = host_bytes(
        step.config, step.text.vocabulary_size, training=True, narrow_products=False, tier=None,
        word_tables=True,
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


def test_a_gpu_holds_tables_and_step_and_its_host_the_copy() -> None:
    step = planned(2, machine(GPUS), checkpoint={"saving": "behind"})
    memory = worker_memory(step)
    spec = step.output.table
    assert memory.device["rows"] + memory.device["optimizer of tables"] == table_bytes(
        spec, "rowwise_adagrad", 2
    )
    assert memory.device["process"] == 200 * MIB
    assert memory.host["copy for checkpoints"] >= table_bytes(spec, "rowwise_adagrad", 2)
    assert memory.fits


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
            "ids": 8 * rows, "vectors": 32 * rows, "row gradients": 32 * rows,
            "dense gradients": 2 * 4 * dense_parameters(step.config.model, 8) * 3 / 4,
            "hidden states": (32 + 8) * tokens * 3, "gradients of hidden states": 32 * tokens * 3,
            "numbers of logits": 16 * 4 * tokens * 3,
        }
    )  # fmt: skip
    assert set(traffic(planned(1)).values()) == {0.0}


def test_negatives_are_looked_up_once_and_sent_to_all() -> None:
    sent = traffic(planned(4, **SAMPLED))
    assert sent["negatives"] == sent["gradients of negatives"] == 4 * 8 * 25 * 3


def test_what_goes_to_other_nodes() -> None:
    network = Network(machine(GPUS), 16)
    assert network.links(150.0) == {"within a node": 70.0, "between nodes": 80.0}
    assert network.latency("all_to_all") == pytest.approx((3 * 1 + 10) * 1e-6)
    # 7 of 15 parts at 100 GB/s, 8 at 10.
    assert network.sending("all_to_all", 15e9) == pytest.approx(0.8)
    # A ring for each of a node's 8 workers, each over its own link.
    assert network.sending("all_reduce", 16e9) == pytest.approx(0.2)
    assert Network(machine(GPUS), 1).latency("all_reduce") == 0


def test_the_exact_output_takes_six_operations_for_each_token_row_and_value() -> None:
    step = planned(2, tokenizer={"vocab_size": 100_000}, embedding={"width": 8})
    spent = StepTime(step).spent()["output"]
    products = 6 + 2 * step.by_tiles
    # With 64 cores for 2 workers each has 32 threads.
    flops = products * step.target_tokens * 50_000 * 8
    assert spent.compute == pytest.approx(flops / 1e9 / 32)
    assert spent.latency > 0


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


def test_factors_of_the_machine_count() -> None:
    slow = {"exact": {"encoder": {"work": 3.0}}}
    before, after = (estimated(planned(2, on)).phases for on in (machine(), with_factors(slow)))
    assert after["encoder"] == pytest.approx(3 * before["encoder"])
    assert after["decoder"] == before["decoder"]
    sampled = [estimated(planned(2, on, **SAMPLED)) for on in (machine(), with_factors(slow))]
    assert sampled[0].step_seconds == sampled[1].step_seconds


def with_factors(factors: dict[str, dict[str, dict[str, float]]]):  # type: ignore[no-untyped-def]
    from dist_embed.planning.machine import Machine

    return Machine.model_validate(machine().model_dump() | {"factors": factors})


def test_a_checkpoint_by_hand() -> None:
    step = planned(2, checkpoint={"saving": "waiting"})
    dense = 12 * dense_parameters(step.config.model, 8)
    found = checkpoint_plan(step)
    assert found.bytes == 1000 * 36 + dense
    assert found.worker_bytes == 500 * 36
    assert found.seconds == found.stall_seconds == pytest.approx(found.bytes / 1e9)


def test_rows_lie_as_the_tables_have_them() -> None:
    assert rows_per_worker(planned(3)) == (332, 334)
    assert rows_per_worker(planned(1000)) == (1, 1)
    assert request_balance(planned(1)) == 1
    assert 1 <= request_balance(planned(8)) < 2


def test_rows_that_all_workers_have_are_asked_of_none() -> None:
    step = planned(64, tokenizer={"vocab_size": 10**6}, **SAMPLED)
    found = [request_balance(step, replicated=count) for count in (0, 100, 4096)]
    assert found[0] > found[1] > found[2] >= 1
    assert request_balance(step, replicated=10**6) == 1


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
    with pytest.raises(UserError, match="workers: 1001 is not allowed: table 'shared' has 1,000"):
        plan(configured(), 1001, machine())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1000, 10**7), st.sampled_from([8, 64, 512]), st.integers(1, 64),
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
    for part in ("rows", "optimizer of tables"):
        assert many.memory.get(part, 0) <= few.memory.get(part, 0) or gpus
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
