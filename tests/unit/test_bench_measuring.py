"""What the benchmarks measure, in turns and by a clock of the tests, with stand-ins for workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dist_embed.bench import (
    baseline,
    export,
    launchers,
    pretrained,
    vocabulary,
    vocabulary_memory,
    vocabulary_speed,
    workers,
)
from dist_embed.bench import checkpoint as checkpoint_bench
from dist_embed.bench.tasks import Baseline
from dist_embed.bench.vocabulary_cases import FULL, KINDS, SAMPLED, SPARSE, Case, Trainer, batches
from dist_embed.bench.vocabulary_speed import Measured
from dist_embed.config.load import config_from_dict
from dist_embed.data.loader import Position, StepBatches
from dist_embed.data.tokenizer import END, START
from dist_embed.errors import RunFailed, UserError
from dist_embed.observe.quiet import private_log_folder
from dist_embed.parallel.group import Group
from dist_embed.run.metrics import MetricsLog
from dist_embed.training.tasks import Train
from dist_embed.training.worker import Context
from tests.unit.small_corpus import Prepared
from tests.unit.small_run import small_run, word_tokenizer

Timed = list[tuple[str, Any]]


def silent(_: Any) -> None:
    pass


class Clock:
    """Time that passes where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the measurements; workers wait a second for the slowest one."""
    one = Clock()

    def waiting(tensor: torch.Tensor, group: Group) -> torch.Tensor:
        one.now += 1.0
        return tensor

    def collecting() -> None:
        one.now += 1000.0  # before the clock starts

    for module in (workers, baseline):
        monkeypatch.setattr(module, "time", one)
    monkeypatch.setattr(workers, "sum_over_workers", waiting)
    for module in (baseline, vocabulary_speed):
        monkeypatch.setattr(module, "gc", SimpleNamespace(collect=collecting))
    return one


# Memory of this process.


def test_the_peak_is_that_since_it_was_reset() -> None:
    # In a small process: of a large one Linux may take back pages while this measures.
    lines = [
        "from dist_embed.bench.memory import peak_bytes, reset_peak",
        "before = reset_peak()",
        "block = b'1' * 2**26",
        "del block",
        "peak = peak_bytes()",
        "again = reset_peak()",
        "print(before, peak, again, peak_bytes())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, check=True, timeout=60
    )
    before, peak, again, after = (int(figure) / 2**20 for figure in done.stdout.split())
    assert 4 < before < 64  # Python alone
    assert 60 < peak - before < 70
    assert again < peak - 60
    assert after - again < 4


# Launchers in turns.


@pytest.mark.parametrize(("steps", "every"), [(59, 5), (9, 1)])
def test_launchers_are_timed_in_turns_without_their_warm_up(
    steps: int, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from_dict(
        {"run": {"uri": "/nowhere"}, "data": {"synthetic": {}}, "train": {"max_steps": 3}}
    )
    asked = []
    taken = {"local": iter([1.0, 2.0, 6.0]), "ray": iter([5.0, 3.0, 4.0])}

    def launch(task: Any, short: Any, **how: Any) -> None:
        assert (task, how["vocabulary_size"]) == (Train(), {"source": 7})
        how["on_event"]({"kind": "line", "text": "not shown"})
        asked.append((how["launcher"], short.run.uri))
        train = short.train
        assert (train.max_steps, train.log_every, train.translate_every) == (steps, every, 0)
        assert min(train.evaluate_every, short.checkpoint.every_steps) > steps
        second = next(taken[how["launcher"]])
        with MetricsLog(short.run.uri, 0) as log:
            for step, value in enumerate((99.0, second, second + 0.5, second - 0.5, second), 1):
                log.write(step, step_seconds=value)
            log.write(steps, validation_loss=1.0)

    monkeypatch.setattr(launchers, "launch", launch)
    said: list[str] = []
    found = launchers.measure_launchers(
        config, {"source": 7}, rounds=3, steps=steps, folder_uri=str(tmp_path), say=said.append
    )
    assert asked == [
        (name, f"{tmp_path}/{name}-{number}") for number in range(3) for name in ("local", "ray")
    ]
    assert found == {
        "step_seconds": {"local": 2.0, "ray": 4.0},
        "all_rounds": {"local": [1.0, 2.0, 6.0], "ray": [5.0, 3.0, 4.0]},
    }
    assert said[:2] == ["round 1, local: 1000.0 ms per step", "round 1, ray: 5000.0 ms per step"]
    assert config.train.max_steps == 3


# Sizes of vocabularies: which are measured, and how.


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A report of stand-ins, and what they were asked."""

    def report(
        *, fails: set[Case] = frozenset(), available: int = 10**9, **changes: Any
    ) -> tuple[Any, dict[str, Any]]:  # fmt: skip
        asked: dict[str, Any] = {"memory": [], "timed": [], "largest": [], "folders": []}

        def memory(case: Case, *, num_workers: int, folder: str, say: Any) -> Any:
            assert num_workers == 2
            assert Path(folder).is_dir()
            asked["memory"].append(case)
            asked["folders"].append(folder)
            return None if case in fails else {"built": 3, "trained": case.num_words, "loaded": 5}

        def timing(name: str) -> Any:
            def measure(cases: list[Case], **how: Any) -> list[list[float]]:
                assert how == {"num_workers": 2, "rounds": 3, "steps": 4, "say": silent}
                asked["timed"].append((name, cases))
                return [[float(place)] for place, _ in enumerate(cases)]

            return measure

        def largest(case_of: Any, **how: Any) -> tuple[int, int]:
            assert how == {"num_workers": 2, "say": silent}
            asked["largest"].append(case_of(123))
            return 100, 200

        monkeypatch.setattr(vocabulary, "measure_memory", memory)
        monkeypatch.setattr(vocabulary, "measure_apart", timing("apart"))
        monkeypatch.setattr(vocabulary, "measure_side_by_side", timing("together"))
        monkeypatch.setattr(
            vocabulary, "measure_on_gpus",
            lambda cases, **how: [
                Measured(seconds, {"built": place, "trained": one.num_words})
                for place, (one, seconds) in enumerate(
                    zip(cases, timing("on GPUs")(cases, **how), strict=True)
                )
            ],
        )  # fmt: skip
        monkeypatch.setattr(vocabulary, "largest", largest)
        monkeypatch.setattr(vocabulary, "available_bytes", lambda: available)
        values: dict[str, Any] = {
            "words": [600, 900], "widths": [8, 16], "against": 700, "tokens": 64,
            "full_tokens": 32, "num_samples": 50, "num_workers": 2, "rounds": 3, "steps": 4,
            "find_largest": False, "say": silent,
        } | changes  # fmt: skip
        found = vocabulary.vocabulary_report(values.pop("words"), values.pop("widths"), **values)
        assert not any(Path(folder).exists() for folder in asked["folders"])
        return found, asked

    return report


def case(kind: Any, num_words: int, width: int = 8, tokens: int = 64) -> Case:
    return Case(kind, num_words, width, tokens, 50)


BESIDE = [case(SAMPLED, 700), case(SPARSE, 700)]
WHOLE = [case(SAMPLED, 700, tokens=32), case(FULL, 700, tokens=32)]


def test_each_size_at_each_width_and_beside_plain_pytorch(reported: Any) -> None:
    found, asked = reported()
    sizes = [[case(SAMPLED, n, width) for n in (600, 900)] for width in (8, 16)]
    groups = [*sizes, BESIDE, WHOLE]
    assert asked["memory"] == [one for group in groups for one in group]
    assert asked["timed"] == [
        ("apart", sizes[0]), ("apart", sizes[1]), ("together", BESIDE), ("apart", WHOLE)
    ]  # fmt: skip
    assert found.speeds == [[(group[0], [0.0]), (group[1], [1.0])] for group in groups]
    assert [one for one, _ in found.memory] == asked["memory"]
    assert found.memory[0][1] == {"built": 3, "trained": 600, "loaded": 5}
    assert (found.num_workers, found.largest, asked["largest"]) == (2, {}, [])


def test_on_gpus_time_and_memory_come_from_the_same_processes(reported: Any) -> None:
    found, asked = reported(words=[900, 600], device="cuda")
    sizes = [[case(SAMPLED, n, width) for n in (600, 900)] for width in (8, 16)]
    groups = [*sizes, BESIDE, WHOLE]
    assert asked["memory"] == asked["folders"] == []
    assert asked["timed"] == [("on GPUs", group) for group in groups]
    assert found.speeds == [[(group[0], [0.0]), (group[1], [1.0])] for group in groups]
    assert found.memory == [
        (one, {"built": place, "trained": one.num_words})
        for group in groups for place, one in enumerate(group)
    ]  # fmt: skip
    assert (found.device, found.num_workers, found.largest) == ("cuda", 2, {})
    found, asked = reported(words=[], against=700, full_tokens=0, device="cuda")
    assert asked["timed"] == [("on GPUs", BESIDE)]  # and no processes for sizes of which none is
    with pytest.raises(UserError, match="--largest: is not possible on a GPU"):
        reported(find_largest=True, device="cuda")


def test_a_case_of_two_groups_takes_memory_once(reported: Any) -> None:
    _, asked = reported(words=[700], widths=[8], full_tokens=0)
    assert asked["memory"] == BESIDE
    assert [cases for _, cases in asked["timed"]] == [BESIDE[:1], BESIDE]
    _, asked = reported(against=0)
    assert {one.kind for one in asked["memory"]} == {SAMPLED}
    assert len(asked["timed"]) == 2


@pytest.mark.parametrize(("available", "way"), [(2 * 1400, "together"), (2 * 1400 - 1, "apart")])
def test_cases_are_side_by_side_where_both_fit(available: int, way: str, reported: Any) -> None:
    _, asked = reported(available=available)
    assert asked["timed"][2] == (way, BESIDE)


def test_what_failed_for_lack_of_memory_is_not_timed(reported: Any) -> None:
    failing = {BESIDE[1], *WHOLE, case(SAMPLED, 600)}
    found, asked = reported(fails=failing)
    assert [cases for _, cases in asked["timed"]] == [
        [case(SAMPLED, 900)], [case(SAMPLED, n, 16) for n in (600, 900)], BESIDE[:1], []
    ]  # fmt: skip
    assert asked["timed"][2][0] == "apart"
    assert {one for one, peaks in found.memory if peaks is None} == failing
    assert [len(group) for group in found.speeds] == [1, 2, 1]


@pytest.mark.parametrize(("full_tokens", "kinds"), [(32, KINDS), (0, (SAMPLED, SPARSE))])
def test_the_largest_of_each_kind(full_tokens: int, kinds: Any, reported: Any) -> None:
    found, asked = reported(words=[], against=0, full_tokens=full_tokens, find_largest=True)
    assert asked["memory"] == []
    assert asked["largest"] == [
        case(kind, 123, tokens=32 if kind == FULL else 64) for kind in kinds
    ]
    assert found.largest == dict.fromkeys(kinds, (100, 200))


def test_more_words_than_samples_are_needed(reported: Any) -> None:
    for changes in ({"words": [51, 50]}, {"against": 50}):
        with pytest.raises(UserError, match="--samples: 50 is not allowed with 50 words"):
            reported(**changes)
    reported(words=[51], against=51)
    with pytest.raises(UserError, match="no size is given"):
        reported(words=[], against=0)
    _, asked = reported(words=[], full_tokens=0)
    assert asked["memory"] == BESIDE


# Memory of a size.


def test_memory_is_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    answer: Any = {"built": 7}

    def launch(target: Any, args: Any, **how: Any) -> Any:
        how.pop("on_event")({"kind": "line", "text": "so far"})
        asked.append((target, args, how))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(vocabulary_memory, "launch_local", launch)
    said: list[str] = []
    one = case(SPARSE, 7000)
    measure = vocabulary_memory.measure_memory
    assert measure(one, num_workers=3, folder="/f", say=said.append) == {"built": 7}
    how = {"num_workers": 3, "log_folder": str(vocabulary_memory.LOG_FOLDER)}
    assert asked == [(vocabulary_memory._measure, (one, "/f"), how)]
    assert said == [f"memory of {SPARSE}, 7,000 words, width 8", "so far"]
    answer = RunFailed("worker 0 failed:\n" + "x" * 300)
    assert measure(one, num_workers=3, folder=None, say=said.append) is None
    assert said[-1] == "  failed: " + "x" * 200


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch, alone: Group) -> dict[str, list[Any]]:
    """Workers' tasks run here, as the only one; what they would do to a process comes back."""

    @contextmanager
    def joined(device: str, timeout_seconds: float) -> Iterator[Group]:
        assert (device, timeout_seconds) == ("cpu", 900.0)
        yield alone

    done: dict[str, list[Any]] = {"log": [], "kept": [], "threads": [], "adj": []}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch, "set_num_threads", done["threads"].append)
    for module in (vocabulary_speed, vocabulary_memory, pretrained):
        monkeypatch.setattr(module, "joined_group", joined)
        monkeypatch.setattr(module, "redirect_output", done["log"].append)
        if hasattr(module, "keep_freed_memory"):
            monkeypatch.setattr(module, "keep_freed_memory", lambda: done["kept"].append(True))

    class Adjusted:
        def __init__(self, path: str) -> None:
            self.path = path

        def write_text(self, text: str) -> None:
            done["adj"].append((self.path, text))

    monkeypatch.setattr(vocabulary_memory, "Path", Adjusted)
    return done


def test_peaks_by_phase_and_what_was_saved_comes_back(
    one_worker: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[dict[str, Any]] = []
    load = vocabulary_memory.load_newest

    def loading(store: Any, state: Any, report: Any, **how: Any) -> Any:
        assert all(float(tensor.data.abs().sum()) == 0 for tensor in state.tensors.values())
        loads.append(how)
        return load(store, state, report, **how)

    monkeypatch.setattr(vocabulary_memory, "load_newest", loading)
    peaks = iter([5, 9, 7, 8, 1, 2, 3, 4])
    resets: list[bool] = []
    monkeypatch.setattr(vocabulary_memory, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(vocabulary_memory, "reset_peak", lambda: resets.append(True))
    measure = vocabulary_memory._measure
    found = measure(case(SAMPLED, 90), str(tmp_path), silent)
    assert found == {"built": 5, "trained": 9, "saved": 7, "loaded": 8}
    assert len(resets) == 5  # before, and after every phase
    assert loads == [{"in_place": True}]
    assert one_worker["adj"] == [("/proc/self/oom_score_adj", "1000")]
    assert one_worker["threads"] == [1]
    assert one_worker["log"] == [private_log_folder("bench") / "worker-0.log"]
    assert measure(case(SAMPLED, 90), None, silent) == {"built": 1, "trained": 2}
    assert measure(case(SPARSE, 90), str(tmp_path), silent) == {"built": 3, "trained": 4}
    assert len(loads) == 1


def test_three_steps_are_trained_for_memory(
    one_worker: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, StepBatches, StepBatches | None]] = []
    monkeypatch.setattr(
        vocabulary_memory, "build_trainer",
        lambda one, group: Trainer(lambda *step: steps.append(step), numbered),
    )  # fmt: skip
    vocabulary_memory._measure(case(SPARSE, 90), None, silent)
    assert [number for number, _, _ in steps] == [1, 2, 3]
    assert [work.after.batch for _, work, _ in steps] == [1, 2, 3]
    assert all(following is this for (_, _, following), (_, this, _) in pairwise(steps))
    assert steps[2][2] is not None


def test_a_save_that_comes_back_otherwise_is_noticed(
    one_worker: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_memory, "load_newest", lambda *a, **k: None)
    with pytest.raises(AssertionError):
        vocabulary_memory._measure(case(SAMPLED, 90), str(tmp_path), silent)


# Seconds of a step.


def numbered(number: int, work: StepBatches) -> StepBatches:
    """A step's preparation that leaves its number in the work."""
    return replace(work, after=Position(batch=number))


def launched_speed(
    monkeypatch: pytest.MonkeyPatch, said: list[str], device: str = "cpu"
) -> list[tuple[list[Case], range, int, int]]:
    asked = []

    def launch(target: Any, args: Any, **how: Any) -> Any:
        assert target is vocabulary_speed._measure
        cases, rounds, steps, on = args
        assert on == how["device"] == device
        asked.append((cases, rounds, steps, how["num_workers"]))
        assert how["log_folder"] == str(vocabulary_memory.LOG_FOLDER)
        how["on_event"]({"kind": "line", "text": "so far"})
        return [
            Measured([float(one.num_words + number) for number in rounds], {"built": 1})
            for one in cases
        ]

    monkeypatch.setattr(vocabulary_speed, "launch_local", launch)
    return asked


def test_cases_apart_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked = launched_speed(monkeypatch, said)
    how: dict[str, Any] = {"num_workers": 3, "rounds": 2, "steps": 4, "say": said.append}
    assert vocabulary_speed.measure_apart(BESIDE, **how) == [[700.0, 701.0]] * 2
    assert asked == [
        ([one], range(number, number + 1), 4, 3) for number in range(2) for one in BESIDE
    ]
    asked.clear()
    assert vocabulary_speed.measure_side_by_side(BESIDE, **how) == [[700.0, 701.0]] * 2
    assert asked == [(BESIDE, range(2), 4, 3)]
    assert set(said) == {"so far"}
    asked = launched_speed(monkeypatch, said, "cuda")
    found = vocabulary_speed.measure_on_gpus(BESIDE, **how)
    assert found == [Measured([700.0, 701.0], {"built": 1})] * 2
    assert asked == [(BESIDE, range(2), 4, 3)]


def test_seconds_are_the_median_of_steps_until_the_slowest_worker_is_done(
    one_worker: dict[str, list[Any]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[Any, int, StepBatches, StepBatches | None]] = []

    def build(one: Case, group: Group) -> Trainer:
        def step(number: int, work: StepBatches, following: StepBatches | None) -> None:
            steps.append((one.kind, number, work, following))
            # The middle one of five steps is neither the first nor the last.
            clock.now += {1: 50.0, 2: 10.0, 3: 20.0, 4: 40.0, 0: 30.0}[number % 5] * (
                1 if one.kind == SAMPLED else 2
            )

        def prepare(number: int, work: StepBatches) -> StepBatches:
            clock.now += 1000.0  # before the clock starts
            return numbered(number, work)

        return Trainer(step, prepare)

    monkeypatch.setattr(vocabulary_speed, "build_trainer", build)
    said: list[Any] = []
    found = vocabulary_speed._measure(BESIDE, range(3), 5, "cpu", said.append)
    # With the second in which the others are waited for; memory is told elsewhere.
    assert found == [Measured([31.0] * 3, {}), Measured([61.0] * 3, {})]
    assert all(work.after.batch == number for _, number, work, _ in steps)
    warm, rounds = steps[:6], steps[6:]
    assert [(kind, number) for kind, number, _, _ in warm] == [
        (kind, number) for kind in (SAMPLED, SPARSE) for number in (1, 2, 3)
    ]
    turns = [(SAMPLED, 0), (SPARSE, 0), (SPARSE, 1), (SAMPLED, 1), (SAMPLED, 2), (SPARSE, 2)]
    assert [(kind, number) for kind, number, _, _ in rounds] == [
        (kind, 3 + 5 * number + place) for kind, number in turns for place in range(1, 6)
    ]
    for place, (kind, _, _, following) in enumerate(rounds):
        last = place % 5 == 4
        assert following is (None if last else rounds[place + 1][2]), kind
    # Both sides see the same batches, none of which comes twice.
    fresh = [tuple(work.batches[0].source.flatten().tolist()) for _, _, work, _ in steps]
    assert len(set(fresh)) == 3 + 3 * 5
    assert [event["kind"] for event in said] == ["line"] * 6
    assert said[2]["text"] == f"round 2: {SPARSE}, 700 words, width 8, 64 tokens: 61000.0 ms"
    assert one_worker == {
        "log": [vocabulary_memory.LOG_FOLDER / "worker-0.log"], "kept": [True], "threads": [1],
        "adj": [],
    }  # fmt: skip
    vocabulary_speed._measure(BESIDE[1:], range(1), 5, "cpu", silent)
    assert one_worker["kept"] == [True]  # plain PyTorch alone is left its own way


GPU = Group(0, 1, 1, torch.device("meta"), None)  # type: ignore[arg-type]


def test_on_a_gpu_a_round_of_steps_is_timed_as_a_whole(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host goes ahead, and the device is waited for on both sides."""
    behind = 30.0  # of what was done before

    def synchronize(device: torch.device) -> None:
        nonlocal behind
        clock.now += behind
        behind = 0.0

    def step(number: int, work: Any, following: Any) -> None:
        nonlocal behind
        clock.now += 2.0
        behind += 10.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    work: list[Any] = [None] * 4
    seconds = vocabulary_speed._seconds_of_a_step(step, 3, work, GPU)
    assert seconds == (4 * 2.0 + 1.0 + 4 * 10.0) / 4


def test_memory_of_a_case_on_a_gpu_is_what_comes_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    held, peak = 100, 100

    def hold(more: int) -> None:
        nonlocal held, peak
        held += more
        peak = max(peak, held)

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = held

    def build(one: Case, group: Group) -> Trainer:
        hold(50)
        hold(-20)
        return Trainer(lambda *step: (hold(7), hold(-7)))

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(vocabulary_speed, "build_trainer", build)
    monkeypatch.setattr(vocabulary_speed, "least_over_workers", lambda value, group: min(value, -5))
    for _ in range(2):  # the second case stands on top of the first
        assert vocabulary_speed._warmed_up(BESIDE[0], GPU)[1] == {"built": 50, "trained": 37}


def test_what_does_not_fit_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(SAMPLED, 10**6), case(SPARSE, 10**6), case(FULL, 10**6)]
    values = 3 * 4 * 10**6 * 8
    needed = [values + 3 * 4 * 10**6, 2 * values, 4 * values + 3 * 4 * 64 * 10**6]
    assert [one.least_bytes(1) for one in cases] == needed
    assert cases[0].least_bytes(3) == needed[0] // 3
    monkeypatch.setattr(vocabulary_speed, "free_bytes", lambda device: sum(needed))
    vocabulary_speed._check_room(cases, GPU)
    monkeypatch.setattr(vocabulary_speed, "free_bytes", lambda device: sum(needed) - 1)
    with pytest.raises(UserError, match=r"--words, --widths, --against: .* need 1\.4 GiB of"):
        vocabulary_speed._check_room(cases, GPU)
    monkeypatch.setattr(vocabulary_speed, "free_bytes", lambda device: 1 / 0)
    vocabulary_speed._check_room(cases, replace(GPU, device=torch.device("cpu")))


# Batches and models of the sizes.


def test_batches_are_whole_sentences_of_frequent_words() -> None:
    second = Group(1, 2, 2, torch.device("cpu"), None)  # type: ignore[arg-type]
    found = batches(case(SAMPLED, 5000, tokens=320), second, 2, first=3)
    assert len(found) == 2
    for step in found:
        (batch,) = step.batches
        assert batch.rectangles == ((10, 32, 32),)
        source, target_input = batch.source.view(10, 32), batch.target_input.view(10, 32)
        assert step.token_counts == [[320, 320]]
        assert step.global_tokens == 640
        assert set(source[:, -1].tolist()) == {END}
        assert set(target_input[:, 0].tolist()) == {START}
        assert batch.target_output.numel() == 320
        words = source[:, :-1].flatten()
        assert words.max() > 100
        assert (words < 100).sum() > 0.4 * words.numel()  # log 101 / log 5001 of Zipf's law
        assert words.tolist() != target_input[:, 1:].flatten().tolist()
    all_of_them = batches(case(SAMPLED, 5000, tokens=320), second, 5)
    for one, same in zip(found, all_of_them[3:], strict=True):
        assert torch.equal(one.batches[0].source, same.batches[0].source)
    first = Group(0, 2, 2, torch.device("cpu"), None)  # type: ignore[arg-type]
    others = batches(case(SAMPLED, 5000, tokens=320), first, 1, first=3)
    assert not torch.equal(others[0].batches[0].source, found[0].batches[0].source)


# Training beside plain DDP.


def test_sides_run_in_turns_on_the_same_batches(
    clock: Clock, alone: Group, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from_dict({
        "run": {"uri": "/nowhere", "seed": 5}, "data": {"synthetic": {}, "uri": prepared.uri},
        "train": {"max_steps": 3, "batch_tokens": 500, "accumulate": 2},
    })  # fmt: skip
    sides: list[tuple[str, int, StepBatches, StepBatches | None]] = []
    made: list[Any] = []
    ready: list[int] = []
    calls = {"ours fp32": 0, "ours bf16": 0, "plain fp32": 0, "plain bf16": 0}

    def side(name: str, seconds: float) -> Any:
        def step(number: int, work: StepBatches, following: StepBatches | None) -> None:
            sides.append((name, number, work, following))
            calls[name] += 1
            # Slow in the round before the clock starts, and from the second one on.
            clock.now += seconds * (1 if 4 < calls[name] <= 8 else 3)

        return step

    def plain(config: Any, source: int, target: int, group: Group, *, bf16: bool) -> Any:
        made.append((source, target))
        return side(f"plain {'bf16' if bf16 else 'fp32'}", 2.0)

    def ours(config: Any, *parts: Any) -> Any:
        def prepare(number: int, work: StepBatches) -> StepBatches:
            clock.now += 1000.0  # outside of what is measured
            ready.append(number)
            return work

        return SimpleNamespace(run=side(f"ours {config.train.precision}", 1.0), prepare=prepare)

    monkeypatch.setattr(baseline, "plain_training_step", plain)
    monkeypatch.setattr(baseline, "build_train_step", ours)
    said: list[str] = []
    reporter: Any = SimpleNamespace(line=said.append)
    context = Context(config, alone, reporter)
    found = baseline.baseline_task(context, Baseline(3, 4, ["fp32", "bf16"], compiled=False))
    names = ["ours fp32", "plain fp32", "ours bf16", "plain bf16"]
    assert [name for name, *_ in sides] == [n for _ in range(4) for n in names for _ in range(4)]
    assert [number for _, number, _, _ in sides] == [1, 2, 3, 4] * 16
    assert ready == [1, 2, 3, 4] * 8  # ours alone, as a run's loader does
    tokens = sum(work.global_tokens for _, _, work, _ in sides[:4])
    for place, (_, number, work, following) in enumerate(sides):
        assert work.batches[0].target_output.tolist() == (
            sides[number - 1][2].batches[0].target_output.tolist()
        )
        assert len(work.batches) == 1  # whatever the configuration accumulates
        assert following is (None if number == 4 else sides[place + 1][2])
    # Four steps and the second in which the slowest is waited for; two rounds of three are slow.
    assert found["all_rounds"] == {
        "dist_embed fp32": pytest.approx([tokens / 5, tokens / 13, tokens / 13]),
        "plain DDP fp32": pytest.approx([tokens / 9, tokens / 25, tokens / 25]),
        "dist_embed bf16": pytest.approx([tokens / 5, tokens / 13, tokens / 13]),
        "plain DDP bf16": pytest.approx([tokens / 9, tokens / 25, tokens / 25]),
    }
    assert found["tokens_per_second"]["plain DDP bf16"] == pytest.approx(tokens / 25)
    assert found["left_out"] == {}
    assert (found["workers"], found["threads_per_worker"]) == (1, torch.get_num_threads())
    assert found["device"]
    sizes = prepared.data.vocabulary_size
    assert made == [(sizes["source"], sizes["target"])] * 2
    assert said == ["round 1 of 3 done", "round 2 of 3 done", "round 3 of 3 done"]
    found = baseline.baseline_task(context, Baseline(3, 4, ["bf16"], compiled=False))
    assert set(found["all_rounds"]) == {"dist_embed bf16", "plain DDP bf16"}


@pytest.mark.parametrize("fails", [False, True])
def test_the_plain_model_is_compiled_for_the_batches_that_are_timed(
    fails: bool, clock: Clock, alone: Group, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from_dict({
        "run": {"uri": "/nowhere", "seed": 5}, "data": {"synthetic": {}, "uri": prepared.uri},
        "train": {"max_steps": 3, "batch_tokens": 500},
    })  # fmt: skip
    compiled: list[list[list[int]]] = []
    timed: list[list[int]] = []

    def step(number: int, work: StepBatches, following: StepBatches | None) -> None:
        pass

    def plain(*given: Any, bf16: bool, compiled_for: Any = ()) -> Any:
        if not compiled_for:
            return step
        clock.now += 61.0
        compiled.append([batch.source.tolist() for batch in compiled_for])
        if fails:
            raise RuntimeError("there is no compiler\nset this and that to hear more")
        return lambda number, work, following: timed.append(work.batches[0].source.tolist())

    ours = SimpleNamespace(run=step, prepare=lambda number, work: work)
    monkeypatch.setattr(baseline, "plain_training_step", plain)
    monkeypatch.setattr(baseline, "build_train_step", lambda config, *parts: ours)
    said: list[str] = []
    reporter: Any = SimpleNamespace(line=said.append)
    context = Context(config, alone, reporter)
    found = baseline.baseline_task(context, Baseline(2, 4, ["bf16"], compiled=True))
    name = "plain DDP bf16, compiled"
    assert list(found["all_rounds"]) == [
        "dist_embed bf16", "plain DDP bf16", *([] if fails else [name])
    ]  # fmt: skip
    assert found["left_out"] == ({name: "there is no compiler"} if fails else {})
    assert said == [
        f"{name}: left out: there is no compiler" if fails else f"{name}: compiled in 61 s",
        "round 1 of 2 done", "round 2 of 2 done",
    ]  # fmt: skip
    (batches_of_a_round,) = compiled
    assert len(batches_of_a_round) == 4
    assert timed == ([] if fails else batches_of_a_round * 3)


# A store, and a file of vectors.


def test_a_store_is_measured_by_workers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def launch(target: Any, args: Any, **how: Any) -> Any:
        how.pop("on_event")({"kind": "line", "text": "so far"})
        asked.append((target, args, how))
        return {"rows": 5}

    monkeypatch.setattr(checkpoint_bench, "launch_local", launch)
    said: list[str] = []
    found = checkpoint_bench.measure_checkpoint(
        ["/a", "/b"], num_rows=5, width=6, num_workers=3, rounds=4, device="cuda",
        say=said.append,
    )  # fmt: skip
    how = {"num_workers": 3, "log_folder": "this screen", "device": "cuda"}
    assert asked == [(checkpoint_bench._measure, (["/a", "/b"], 5, 6, 4, "cuda"), how)]
    assert (found, said) == ({"rows": 5}, ["so far"])


@pytest.mark.parametrize("format", ["glove", "word2vec-bin", "fasttext-bin"])
def test_a_table_starts_from_a_file_in_each_way(
    format: Any, one_worker: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "FASTTEXT_BUCKETS", 30)
    monkeypatch.setattr(pretrained, "_BLOCK_ROWS", 7)
    tables: list[tuple[str, torch.Tensor]] = []
    seconds = iter([2.0, 4.0, 8.0, 16.0])

    def launch(target: Any, args: Any, **how: Any) -> Any:
        assert how["num_workers"] == 3
        assert how["log_folder"] == str(pretrained.LOG_FOLDER)
        how["on_event"]({"kind": "line", "text": "so far"})
        taken, extra = target(*args, silent)
        assert 0 < taken < 60
        assert extra == 100
        return next(seconds), 5.0

    def keeping(cls: Any) -> Any:
        class Keeping(cls):  # type: ignore[misc]
            def __init__(self, weight: torch.Tensor, *rest: Any, **more: Any) -> None:
                tables.append((cls.__name__, weight))
                super().__init__(weight, *rest, **more)

        return Keeping

    monkeypatch.setattr(pretrained, "launch_local", launch)
    monkeypatch.setattr(pretrained, "peak_bytes", lambda: 1000)
    monkeypatch.setattr(pretrained, "reset_peak", lambda: 900)
    for name in ("TableStart", "EveryoneReadsAll"):
        monkeypatch.setattr(pretrained, name, keeping(getattr(pretrained, name)))
    said: list[str] = []
    found = pretrained.measure_pretrained(
        str(tmp_path), num_words=20, width=4, format=format, num_workers=3, rounds=2,
        say=said.append,
    )  # fmt: skip
    ways = ("everyone all",) if format == "fasttext-bin" else pretrained.WAYS
    if format == "fasttext-bin":
        expected = {"everyone all": [2.0, 4.0]}
        assert [name for name, _ in tables] == ["TableStart"] * 2
    else:
        expected = {"each its part": [2.0, 8.0], "everyone all": [4.0, 16.0]}
        assert [name for name, _ in tables] == ["TableStart", "EveryoneReadsAll"] * 2
        vectors = torch.cat([torch.from_numpy(b.vectors) for b in pretrained._random_blocks(20, 4)])
        scale = float(vectors.std())
        assert 0.3 < scale < 0.5
        assert torch.equal(vectors, (vectors.double() * 1e5).round().div(1e5).float())
    for _, table in tables:
        assert torch.equal(table, tables[0][1])
    assert found["ways"] == {
        way: {"seconds": expected[way], "extra_bytes": [5.0, 5.0]} for way in ways
    }
    assert found["rows_per_second"] == {
        way: pytest.approx(20 / np.median(taken)) for way, taken in expected.items()
    }
    assert (found["words"], found["width"], found["format"], found["workers"]) == (20, 4, format, 3)
    assert found["file_bytes"] == (tmp_path / "vectors").stat().st_size
    assert found["shard_bytes"] == 24 // 3 * 4 * 4
    assert said[0] == f"writing 20 × 4 as {format}"
    assert said[1:3] == ["so far", f"round 1, {ways[0]}: 2.0 s"]
    assert one_worker["kept"] == [True] * (2 * len(ways))
    assert set(one_worker["threads"]) == {1}
    assert set(one_worker["log"]) == {private_log_folder("bench") / "worker-0.log"}


# Another engine.


def test_the_engine_is_judged_as_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (
        word_tokenizer(["a", "b", "c"]),
        word_tokenizer(["x", "Y", "z"], form="nfc", lowercase=True),
    )
    run = small_run(
        tmp_path, {"source": source, "target": target},
        {"source": torch.zeros(source.size, 4), "decoder": torch.zeros(target.size, 4)},
        settings={"search": {"beam": 3, "length_penalty": 0.75, "batch_tokens": 9,
                             "bleu_tokenize": "none"},
                  "tokenizer": {"shared": False, "lowercase": True}},
    )  # fmt: skip
    exported: list[Any] = []
    engines: list[Any] = []
    asked: list[Any] = []
    clock = Clock()

    def writing(uri: str, folder: Path, *, step: int, quantization: Any) -> None:
        exported.append((uri, step, quantization, folder))
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"x" * (7 if quantization else 28))

    class Engine:
        def __init__(self, folder: str, **how: Any) -> None:
            assert Path(folder).is_dir()
            clock.now += 100.0
            engines.append(how)

        def translate_batch(self, tokens: list[list[str]], **how: Any) -> list[Any]:
            asked.append((tokens, how))
            clock.now += 4.0
            answers = [["▁x", "▁Y", "▁x", "▁Y", "<unk>"], ["nothing known"]]
            return [SimpleNamespace(hypotheses=[answer, ["▁a"]]) for answer in answers]

    monkeypatch.setattr(export, "export_ctranslate2", writing)
    monkeypatch.setattr(export, "time", clock)
    monkeypatch.setattr("ctranslate2.Translator", Engine)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7} if pid == 0 else set())
    from dist_embed.run.folder import read_run_config

    config = read_run_config(run)
    first, second = export.measure_engine(
        config,
        5,
        ["a b", "c"],
        ["\ufeffx y x y <unk>", "z <unk>"],
        ["x Y x Y <unk>", "z"],
        [None, "int8"],
    )
    assert [one[:3] for one in exported] == [(run, 5, None), (run, 5, "int8")]
    assert not any(folder.parent.exists() for *_, folder in exported)
    how = {"device": "cpu", "inter_threads": 3, "intra_threads": 1}
    assert engines == [how | {"compute_type": "float32"}, how | {"compute_type": "int8"}]
    tokens, options = asked[0]
    assert tokens == [[source.token(i) for i in ids] for ids in source.encode(["a b", "c"])]
    assert options == {
        "beam_size": 3, "length_penalty": 0.75, "max_batch_size": 9, "batch_type": "tokens",
        "max_input_length": 1024,
    }  # fmt: skip
    assert (first.kind, second.kind) == ("float32", "int8")
    assert (first.model_bytes, second.model_bytes) == (28, 7)
    assert first.same == 1
    assert first.sentences_per_second == pytest.approx(2 / 4)
    import sacrebleu

    texts = ["x Y x Y Q", ""]
    score = sacrebleu.corpus_bleu(
        texts, [["x y x y <unk>", "z <unk>"]], lowercase=True, tokenize="none", force=True
    )
    assert first.bleu == pytest.approx(score.score)
    assert 0 < score.score < 100
