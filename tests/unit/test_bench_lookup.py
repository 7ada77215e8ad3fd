"""``dist-embed bench lookup``: what is drawn, checked, refused, timed and told."""

from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_embed.bench import lookup, lookup_cases, lookup_ways
from dist_embed.bench.device_work import work_seconds
from dist_embed.bench.lookup import Found, Report, Seconds, lookup_report, lookup_table
from dist_embed.bench.lookup_cases import Case, Work, possible_cases
from dist_embed.bench.lookup_draws import Draw, draw_ids, power_law
from dist_embed.bench.lookup_ways import LookupWays
from dist_embed.bench.passes import median_seconds
from dist_embed.cli.main import build_parser, main
from dist_embed.data.zipf import zipf
from dist_embed.embedding.cpu_rows import CpuRows
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.embedding.step_rows import StepRows
from dist_embed.errors import RunFailed, UserError
from dist_embed.observe import clocks
from dist_embed.parallel.group import Group

CPU = torch.device("cpu")
ON_CPU = ["sgd", "adagrad", "rowwise_adagrad"]
GIB = 2**30


@pytest.fixture(autouse=True)
def this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command changes of its process is not changed in the tests'."""
    monkeypatch.setattr(lookup, "keep_freed_memory", lambda: None)
    monkeypatch.setattr("dist_embed.observe.quiet.quiet_screen", lambda: None)


def report_of(optimizers: list[str], num_rows: int = 50, **how: Any) -> Report:
    work = Work(**({"num_ids": 40, "width": 8, "draw": "power-law", "repeats": 1} | how))
    return lookup_report(
        "cpu", work, num_rows=num_rows, fill=None, memories=["device"], weights=["fp32"],
        optimizers=optimizers, say=lambda text: None,
    )  # fmt: skip


# Ids.


@pytest.mark.parametrize("draw", get_args(Draw))
def test_ids_are_words_of_the_table_and_repeat_with_their_seed(draw: Any) -> None:
    ids = draw_ids(draw, 1000, 400, 3, CPU)
    assert (ids.shape, ids.dtype) == ((400,), torch.int64)
    assert ids.untyped_storage().nbytes() == 8 * 400
    assert 0 <= int(ids.min()) <= int(ids.max()) < 1000
    assert torch.equal(ids, draw_ids(draw, 1000, 400, 3, CPU))
    assert not torch.equal(ids, draw_ids(draw, 1000, 400, 4, CPU))
    assert (len(ids.unique()) == 400) == (draw == "distinct")


def test_zipf_is_that_of_the_other_measurements() -> None:
    expected = zipf(np.random.default_rng(5), 1000, 400)
    assert draw_ids("zipf", 1000, 400, 5, CPU).tolist() == expected.tolist()


def test_the_public_case_has_as_many_distinct_ids_as_are_published() -> None:
    ids = draw_ids("power-law", 16_800_000, 1_048_570, 0, CPU)
    assert len(ids.unique()) == pytest.approx(350_280, rel=0.003)


def test_a_power_law_goes_from_the_first_row_of_each_tenth_to_its_last() -> None:
    def ids(uniform: float) -> list[int]:
        return power_law(1009, torch.full((12,), uniform, dtype=torch.float64)).tolist()

    tenths = [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 0, 100]
    assert ids(0.0) == tenths
    for last in (np.nextafter(1.0, 0.0), 1.0):
        assert ids(last) == [first + 99 for first in tenths]
    assert sorted(power_law(3, torch.rand(6, dtype=torch.float64)).tolist()) == [0, 0, 1, 1, 2, 2]


# Which tables, and what fits.


def cases_of(
    monkeypatch: pytest.MonkeyPatch, *, on_device: int | None, in_host: int, work: Work,
    **how: Any,
) -> list[Case]:  # fmt: skip
    monkeypatch.setattr(lookup_cases, "free_bytes", lambda device: on_device)
    monkeypatch.setattr(lookup_cases, "available_bytes", lambda: in_host)
    device = torch.device("cpu" if on_device is None else "cuda")
    given = {"num_rows": 1000, "fill": None, "memories": ["device"], "weights": ["fp32"],
             "optimizers": ["sgd"]} | how  # fmt: skip
    return possible_cases(device, work, **given)


def test_every_combination_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cases_of(
        monkeypatch, on_device=10 * GIB, in_host=10 * GIB, work=Work(10, 8, "zipf", 1),
        memories=["device", "uvm"], weights=["fp32", "fp16"], optimizers=["sgd", "adam"],
    )  # fmt: skip
    assert len(set(found)) == 8
    assert found[:2] == [Case("device", "fp32", "sgd", 1000), Case("device", "fp32", "adam", 1000)]
    assert found[-1] == Case("uvm", "fp16", "adam", 1000)


def test_rows_and_state_take_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    how: Any = {
        "in_host": 60 * GIB, "work": Work(10, 128, "zipf", 1), "fill": 0.5,
        "optimizers": ["sgd", "rowwise_adagrad", "adam"],
    }  # fmt: skip
    on_gpu = cases_of(monkeypatch, on_device=40 * GIB, memories=["device", "uvm"], **how)
    bytes_of_a_row = [4 * 128, 4 * 129, 12 * 128]
    expected = [20 * GIB // each for each in bytes_of_a_row]
    assert [case.num_rows for case in on_gpu] == 2 * expected
    how["optimizers"] = ["sgd"]
    (on_cpu,) = cases_of(monkeypatch, on_device=None, **how)
    assert on_cpu.num_rows == 30 * GIB // 512


FEW = Work(10, 128, "zipf", 1)


@pytest.mark.parametrize(
    ("on_device", "in_host", "how", "said"),
    [
        (None, GIB, {"num_rows": 2_100_000}, r"1.00 GiB of this machine's memory.*1.00 GiB are"),
        (GIB, 9 * GIB, {"num_rows": 2_100_000}, r"device, fp32, sgd, 2,100,000 rows: 1.00 GiB of "
                                                r"this GPU's memory.*with ids and vectors.*--rows"),
        (9 * GIB, GIB, {"num_rows": 2_100_000, "memories": ["uvm"]}, "of this machine's memory"),
        # The state of row-wise Adagrad lies on the GPU in any case.
        (GIB, 999 * GIB, {"num_rows": 300_000_000, "memories": ["uvm"],
                          "optimizers": ["rowwise_adagrad"]}, "1.12 GiB of this GPU's memory"),
        (GIB, 99 * GIB, {"num_rows": 2_100_000, "work": Work(10**7, 128, "zipf", 1),
                         "memories": ["uvm"]}, "of this GPU's memory"),
        (GIB, 99 * GIB, {"num_rows": 200_000_000, "memories": ["uvm_caching"],
                         "weights": ["fp16"]}, "a cache needs more than 0.81 GiB"),
        (GIB, GIB, {"num_rows": 2**31}, "not allowed; a table has 1 to 2,147,483,647 rows"),
        (GIB, GIB, {"fill": 1e-9}, "not allowed; a table has 1 to"),
        (None, GIB, {"num_rows": 9, "work": Work(10, 128, "distinct", 1)},
         "--ids: 10 is not allowed.*9 rows.*another --draw"),
        (None, GIB, {"weights": ["fp32", "fp16"]}, "embedding.weights: 'fp16' is not allowed"),
        (None, GIB, {"optimizers": ["adam"]}, "embedding.optimizer: 'adam' is not allowed"),
        (None, GIB, {"memories": ["uvm"]}, "embedding.memory: 'uvm' is not allowed"),
        (GIB, GIB, {"work": Work(10, 2052, "zipf", 1)}, "embedding.width: 2052 is not allowed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, on_device: int | None, in_host: int, how: dict[str, Any],
    said: str,
) -> None:  # fmt: skip
    with pytest.raises(UserError, match=said) as caught:
        cases_of(monkeypatch, on_device=on_device, in_host=in_host, **({"work": FEW} | how))
    assert "\n" not in str(caught.value)


def test_nothing_is_allocated_before_all_tables_are_known_to_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "measure", None)  # calling it would fail
    monkeypatch.setattr(lookup, "copy_seconds", None)
    monkeypatch.setattr(lookup_cases, "available_bytes", lambda: GIB)
    with pytest.raises(UserError, match=r"adagrad, 1,500,000 rows: .* GiB of this"):
        report_of(["sgd", "adagrad"], 1_500_000, width=128)


# Checked and timed.


def test_every_optimizer_that_the_cpu_has() -> None:
    report = report_of(ON_CPU, num_ids=700, repeats=2)
    assert report.copied_bytes == 2 * 50 * 2 * 8 * 4  # the largest table, Adagrad's, twice
    assert report.copy_seconds > 0
    assert [one.case for one in report.found] == [
        Case("device", "fp32", name, 50) for name in ON_CPU
    ]
    states = {"sgd": 0, "adagrad": 32, "rowwise_adagrad": 4}
    for one in report.found:
        ids = [draw_ids("power-law", 50, 700, seed, CPU) for seed in range(5)]
        distinct = int(np.median([len(some.unique()) for some in ids]))
        assert one.distinct_ids == distinct < 51
        assert one.lookup_bytes == 700 * 32 + distinct * 32
        state = states[one.case.optimizer]
        assert one.update_bytes == one.lookup_bytes + 700 * 32 + 2 * distinct * (32 + state)
        assert all(0 < seconds < 60 for seconds in vars(one.seconds).values())


def test_no_other_workers_are_waited_for_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As in a pod that is told its place, without an address to meet at.
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in (
        ("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    found: list[Group] = []
    measure = lookup.measure
    monkeypatch.setattr(
        lookup,
        "measure",
        lambda case, work, group: found.append(group) or measure(case, work, group),
    )
    report_of(["sgd"])
    (group,) = found
    assert (group.rank, group.num_workers, group.num_local_workers) == (0, 1, 1)


def test_a_table_is_gone_before_the_next_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[Any]] = []

    def build(*args: Any, **how: Any) -> ShardedTables:
        assert all(kernel() is None for kernel in built)
        made = ShardedTables(*args, **how)
        built.extend(weakref.ref(kernel) for kernel in made.kernels)
        return made

    monkeypatch.setattr(lookup_ways, "ShardedTables", build)
    report_of(["sgd", "adagrad"])
    gc.collect()
    assert [kernel() for kernel in built] == [None, None]


Broken = Callable[[pytest.MonkeyPatch], None]


def wrong_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    take = CpuRows.take
    monkeypatch.setattr(CpuRows, "take", lambda *given: take(*given) + 1e-6)


def zeros_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuRows, "take", lambda rows, parts: torch.zeros(len(parts[0][1]), 8))
    monkeypatch.setattr(LookupWays, "kernel_lookup", lambda ways, rows: torch.zeros(len(rows), 8))


def wrong_kernel_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LookupWays.kernel_lookup
    monkeypatch.setattr(LookupWays, "kernel_lookup", lambda ways, rows: found(ways, rows.flip(0)))


def no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepRows, "backward", lambda rows, **how: None)


def no_kernel_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LookupWays, "kernel_update", LookupWays.kernel_lookup)


def wrong_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(tables: ShardedTables, rate: float) -> None:
        tables.kernels[0].set_learning_rate(rate * 1.002)

    monkeypatch.setattr(ShardedTables, "set_learning_rate", more)


def one_gradient_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(ways: LookupWays, wanted: Any, step: int) -> None:
        rows, vectors = ways.lookup(wanted)
        gradient = ways._gradient.clone()
        gradient[0] = 0
        vectors.backward(gradient)
        rows.backward()

    monkeypatch.setattr(LookupWays, "update", update)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (wrong_vectors, "what dist_embed looks up is not what the table holds"),
        (zeros_in_the_table, "what FBGEMM looks up is not what the table holds"),
        (wrong_kernel_lookup, "what FBGEMM looks up is not what the table holds"),
        (no_update, r"change of rows by dist_embed is off by 1.0e\+00 of what"),
        (no_kernel_update, r"change of rows by FBGEMM is off by 1.0e\+00 of what"),
        (wrong_rate, "change of rows by dist_embed is off by 2.0e-03 of what.*allowed is 0.001"),
        (one_gradient_of_many, "change of rows by dist_embed is off by"),
    ],
)
def test_garbage_is_not_timed(monkeypatch: pytest.MonkeyPatch, broken: Broken, said: str) -> None:
    broken(monkeypatch)
    monkeypatch.setattr(lookup, "median_seconds", None)
    with pytest.raises(RunFailed, match=f"device, fp32, sgd, 50 rows: .*{said}"):
        report_of(["sgd"])


def test_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(clocks, "time", clock)

    def call(seconds: float) -> None:
        clock.now += seconds

    assert median_seconds(call, [50.0, 60.0, 70.0, 1.0, 9.0, 2.0], CPU) == 2.0


def test_operations_are_counted_once_and_python_is_not() -> None:
    big = torch.rand(400, 400)

    def call(seconds: float) -> Tensor:
        with torch.profiler.record_function("covers what is below"):
            product = big @ big
            ended = time.perf_counter() + seconds
            while time.perf_counter() < ended:
                pass
        return product

    few = work_seconds(call, [0.0, 0.0], CPU)
    assert few > 0
    assert work_seconds(call, [0.6, 0.0], CPU) < few + 0.15


# The command.


def given_to(command: str) -> dict[str, Any]:
    values = vars(build_parser().parse_args(["bench", "lookup", *command.split()]))
    return {name: value for name, value in values.items()
            if name not in ("command", "kind", "call", "output")}  # fmt: skip


def test_options_and_their_defaults() -> None:
    assert given_to("") == {
        "device": "auto", "rows": 1_000_000, "fill": None, "ids": 100_000, "width": 128,
        "draw": "distinct", "optimizer": ["rowwise_adagrad"], "weights": ["fp32"],
        "memory": ["device"], "repeats": 20,
    }  # fmt: skip
    given = given_to(
        "--device cuda --fill 0.6 --ids 1 --width 4 --draw power-law --optimizer sgd adam "
        "--weights fp16 fp32 --memory uvm uvm_caching device --repeats 1"
    )
    assert given == {
        "device": "cuda", "rows": 1_000_000, "fill": 0.6, "ids": 1, "width": 4,
        "draw": "power-law", "optimizer": ["sgd", "adam"], "weights": ["fp16", "fp32"],
        "memory": ["uvm", "uvm_caching", "device"], "repeats": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("refused", "why"),
    [("--rows 0", "at least 1"), ("--ids 0", "at least 1"), ("--width 3", "at least 4"),
     ("--repeats 0", "at least 1"), ("--fill 0", "above 0 and below 1"),
     ("--fill 1", "above 0 and below 1"), ("--fill 0.5 --rows 7", "not allowed with"),
     ("--draw even", "invalid choice"), ("--memory auto", "invalid choice"),
     ("--optimizer", "expected at least")],
)  # fmt: skip
def test_wrong_options_are_refused(
    refused: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        given_to(refused)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_a_width_that_kernels_do_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "lookup", "--width", "6"]) == 2
    assert "--width: 6 is not allowed: a multiple of 4" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    options = "--device cpu --rows 60 --ids 30 --width 8 --optimizer sgd adagrad --repeats 1"
    assert main(["bench", "lookup", *options.split(), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    for optimizer in ("sgd", "adagrad"):
        assert f"device, fp32, {optimizer}, 60 rows: 30 distinct ids, found in" in said
        assert said.count(f"| device, fp32, {optimizer}, 60 rows ") == 2
    assert "30 ids a step (distinct) × 8 on" in said
    content = json.loads(out.read_text())
    assert content["machine"]["device"] == content["figures"]["device"]
    assert content["figures"]["work"] == {
        "num_ids": 30, "width": 8, "draw": "distinct", "repeats": 1,
    }  # fmt: skip
    (one, _) = content["figures"]["found"]
    assert one["case"] == {
        "memory": "device",
        "weights": "fp32",
        "optimizer": "sgd",
        "num_rows": 60,
    }
    assert one["distinct_ids"] == 30


def test_what_the_table_says() -> None:
    seconds = Seconds(
        kernel_lookup=1e-3, kernel_update=2e-3, kernel_update_on_device=1.5e-3, request=1.0,
        lookup=1.5e-3, update=5e-3, update_on_device=3e-3, distinct=1.0, distinct_on_host=1.0,
    )  # fmt: skip
    found = Found(Case("uvm", "fp16", "adam", 1234), 9, 10**9, 3 * 10**9, seconds)
    report = Report("a device", FEW, 4 * 10**9, 2e-3, [found])
    header, rows = lookup_table(report)
    assert {len(header), *map(len, rows)} == {11}
    case = "uvm, fp16, adam, 1,234 rows"
    assert rows == [
        [case, "FBGEMM", "1.000", "1,000.0", "50.0 %", "1.00", "2.000", "1,500.0", "75.0 %",
         "1.00", "1.500"],
        [case, "dist_embed", "1.500", "666.7", "33.3 %", "1.50", "5.000", "600.0", "30.0 %",
         "2.50", "3.000"],
    ]  # fmt: skip
