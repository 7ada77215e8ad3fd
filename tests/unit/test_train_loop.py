"""When a run steps, logs, validates, translates, saves and stops: the loop among stand-ins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from dist_embed.checkpoint.manifest import METRIC
from dist_embed.data.loader import Position
from dist_embed.errors import UserError
from dist_embed.training import loop, saving
from dist_embed.training.step import StepResult
from dist_embed.training.workers import WorkersSpent
from tests.unit.loop_course import OTHER_SECONDS, STEP_SECONDS, Run, after


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    return lambda name, value: monkeypatch.setattr(saving, name, value)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    return lambda run: monkeypatch.setattr(loop.time, "perf_counter", lambda: run.now)


def test_everything_has_its_own_rhythm() -> None:
    run = Run()
    assert not run.train(log_every=5, evaluate_every=4, translate_every=6, save_every=3)
    assert [event[1] for event in run.happened("step")] == list(range(1, 13))
    assert [event["step"] for event in run.progress] == [4, 5, 8, 10, 12]
    assert [event[1] for event in run.happened("validate")] == [4, 8, 12]
    assert [event[1] for event in run.happened("translate")] == [6, 12]
    assert [event[1] for event in run.happened("save")] == [3, 6, 9, 12]
    assert all(event["max_steps"] == 12 for event in run.progress)


def test_the_last_step_has_everything_in_this_order_and_the_end_waits_for_its_save() -> None:
    run = Run()
    run.train(max_steps=2, translate_every=50)
    at_the_end = run.course[run.course.index(("step", 2, after(1), None)) + 1 :]
    assert at_the_end == [
        ("metrics", 2, "epoch"), ("validate", 2), ("metrics", 2, "validation_loss"),
        ("translate", 2), ("metrics", 2, "neighbors"), ("save", 2, 2.0), ("wait", None),
        ("require", 2), ("close",), ("close",),
    ]  # fmt: skip


def test_a_step_is_said_to_be_one_and_what_may_take_long_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For whom nothing of it is a hang."""
    run = Run()
    for module in (loop, saving):
        monkeypatch.setattr(module, "at", lambda phase: run.course.append(("at", phase)))
    run.train(max_steps=3, evaluate_every=2, translate_every=2, save_every=1)
    phase, phases = None, {}
    for what, *about in run.course:
        if what == "at":
            (phase,) = about
        else:
            phases.setdefault(what, set()).add(phase)
    assert phases["step"] == {"step 1", "step 2", "step 3"}
    for long in ("validate", "translate", "save", "wait"):
        assert phases[long] == {None}, long


def test_without_held_out_data_nothing_is_validated_or_translated() -> None:
    run = Run()
    run.train(evaluate_every=2, translate_every=3, held_out=False)
    assert run.happened("validate", "translate") == []
    assert [event["step"] for event in run.progress] == [12]
    none = Run()
    none.train(translate_every=0)
    assert none.happened("translate") == []


def test_each_step_gets_its_batches_and_those_of_the_next() -> None:
    run = Run(first_step=3, position=Position(2, 0, 7))
    run.train(max_steps=6)
    assert run.course[0] == ("from", Position(2, 0, 7))
    assert run.happened("step") == [
        ("step", 4, after(27), after(28)), ("step", 5, after(28), after(29)),
        ("step", 6, after(29), None),
    ]  # fmt: skip
    # In the loader's thread, with the number of the step that will be made of them.
    assert run.prepared[:3] == [(4, after(27)), (5, after(28)), (6, after(29))]
    assert len(run.happened("to")) == 3  # what no step needs is not sent to the device
    assert run.state.step == 6
    assert run.state.scalars["position"] == after(29).to_dict()


def test_the_position_saved_is_that_behind_the_step() -> None:
    run, saved = Run(), []
    save = run.save
    run.save = lambda state, check: (saved.append(dict(state.scalars)), save(state, check))  # type: ignore[assignment, func-returns-value]
    run.train(max_steps=4, save_every=2)
    assert [scalars["position"] for scalars in saved] == [after(1).to_dict(), after(3).to_dict()]


def test_a_checkpoint_has_the_metric_of_its_own_step_or_none() -> None:
    run = Run(losses={2: 3.25, 4: 2.5})
    run.state.scalars[METRIC] = 9.0  # of the checkpoint that the run goes on from
    run.train(max_steps=5, evaluate_every=2, save_every=1, translate_every=0)
    assert [event[2] for event in run.happened("save")] == [None, 3.25, None, 2.5, 5.0]


def test_a_validation_is_told_and_written() -> None:
    run = Run(losses={1: 2.0, 2: 1e9})
    run.train(max_steps=2, evaluate_every=1)
    assert run.metrics[1] == {
        "step": 1, "validation_loss": 2.0, "validation_perplexity": math.exp(2.0)
    }  # fmt: skip
    assert run.metrics[3]["validation_perplexity"] == math.exp(700.0)
    assert run.lines[0] == "step 1: validation loss 2.0000, perplexity 7.39"


def test_a_translation_is_told_and_written() -> None:
    run = Run()
    run.train(max_steps=1, translate_every=1)
    assert run.metrics[-1] == {
        "step": 1, "validation_bleu": 21.5, "validation_chrf": 43.25, "scored_by": "tok:13a",
        "samples": [{"source": "a"}], "neighbors": {"a": [("b", 0.5)]},
    }  # fmt: skip
    assert run.lines[-1] == (
        "step 1: validation BLEU 21.50, chrF 43.25 (17 sentences in 3 s)"
    )  # fmt: skip


def test_a_line_has_the_means_of_the_steps_since_the_last(clocked: Callable[[Run], None]) -> None:
    run = Run(
        results={
            1: StepResult(4.0, 3.0, 10, False, 0.5),
            2: StepResult(1.0, 2.0, 30, False, 0.25),
            3: StepResult(math.nan, math.nan, 500, True, math.nan),
            4: StepResult(8.0, 6.0, 20, False, 7.5),
        }
    )
    clocked(run)
    run.train(max_steps=10, log_every=2, save_every=1, evaluate_every=3)
    known = {key: value for key, value in run.metrics[0].items() if "/" not in key}
    assert known == {
        "step": 2,
        "loss": (4.0 * 10 + 1.0 * 30) / 40, "nll": (3.0 * 10 + 2.0 * 30) / 40,
        "tokens_per_second": 40 / (2 * STEP_SECONDS), "step_seconds": STEP_SECONDS,
        "steps": 2, "gradient_norm": 0.25, "skipped_steps": 4, "epoch": 0, "resumed_at": 0,
        "learning_rate": 0.25, "table_learning_rate": 0.125,
    }  # fmt: skip
    assert len(run.progress[0].pop("workers")["own_seconds"]) == 1
    assert run.progress[0] == {
        "kind": "progress", "step": 2, "max_steps": 10, "loss": 1.75,
        "tokens_per_second": 10.0, "eta_seconds": 8 * STEP_SECONDS,
    }  # fmt: skip
    # Step 3 is logged as it is validated: nothing but a skipped step, a gap in a chart.
    third = run.metrics[1]
    assert (third["step"], third["skipped_steps"]) == (3, 5)
    assert math.isnan(third["loss"])
    assert math.isnan(third["nll"])
    assert third["tokens_per_second"] == 0
    assert math.isnan(run.progress[1]["loss"])
    fourth = run.metrics[3]
    assert (fourth["loss"], fourth["nll"], fourth["gradient_norm"]) == (8.0, 6.0, 7.5)
    assert fourth["tokens_per_second"] == 20 / STEP_SECONDS
    assert run.metrics[-2]["epoch"] == 1


def test_the_first_line_of_a_start_says_where_it_began() -> None:
    run = Run(first_step=5)
    run.train(max_steps=8, log_every=1)
    logged = [line for line in run.metrics if "step_seconds" in line]
    assert [line["resumed_at"] for line in logged] == [5, None, None]


def test_a_line_tells_what_the_steps_took_and_not_what_a_validation_takes(
    clocked: Callable[[Run], None],
) -> None:
    run = Run()
    clocked(run)
    run.train(max_steps=4, log_every=2, save_every=1, evaluate_every=2)
    logged = [line for line in run.metrics if "loss" in line]
    # Of the saves only those before the line's steps: that of step 1, then of 2 and 3.
    assert [line["phase/checkpoint_stall"] for line in logged] == [
        OTHER_SECONDS, 2 * OTHER_SECONDS
    ]  # fmt: skip
    assert [line["workers/own_seconds"] for line in logged] == [
        [OTHER_SECONDS + 2 * STEP_SECONDS], [2 * OTHER_SECONDS + 2 * STEP_SECONDS]
    ]  # fmt: skip
    assert all(line["phase/data_wait"] == 0 for line in logged)
    assert run.progress[1]["workers"]["phases"]["checkpoint_stall"] == [2 * OTHER_SECONDS]
    assert run.progress[1]["workers"]["rows_requested"] == [0]
    assert run.progress[1]["workers"]["memory_bytes"][0] > 2**20


def test_who_holds_the_others_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(loop.Stragglers):
        def lines(self, found: WorkersSpent) -> list[str]:
            return [f"{len(found.own_seconds)} worker, the slowest"]

    monkeypatch.setattr(loop, "Stragglers", Named)
    run = Run()
    run.train(max_steps=4, log_every=2, held_out=False)
    assert run.lines == ["1 worker, the slowest"] * 2


def skips(*steps: int) -> dict[int, StepResult]:
    return {step: StepResult(math.inf, math.nan, 10, True, math.inf) for step in steps}


def test_skipped_steps_are_counted_and_told() -> None:
    run = Run(results=skips(2, 3, 5, 6))
    run.train(max_steps=7, max_skipped_steps=3)
    assert run.state.scalars["skipped_steps"] == 8
    assert run.state.step == 7
    assert run.lines[0] == (
        "step 2 skipped: loss inf or its gradient is not finite; nothing was changed "
        "(5 skipped so far)"
    )
    assert [line.split(" skipped")[0] for line in run.lines[:-1]] == [
        "step 2", "step 3", "step 5", "step 6"
    ]  # fmt: skip


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    run = Run(results=skips(1, 2, 4, 5, 6))
    with pytest.raises(UserError, match=r"^3 steps in a row .*max_skipped_steps=3.*clip_norm"):
        run.train(max_skipped_steps=3, save_every=1)
    assert run.happened("step")[-1][1] == 6
    assert [event[1] for event in run.happened("save")] == [1, 2, 3, 4, 5]
    assert run.course[-2:] == [("close",), ("close",)]
    once = Run(results=skips(1))
    with pytest.raises(UserError, match=r"^1 steps in a row"):
        once.train(max_skipped_steps=1)


@pytest.mark.parametrize("save_every", [100, 3])
def test_a_run_that_is_asked_to_stop_saves_the_step_it_has_done(
    patched: Callable[[str, Any], None], save_every: int
) -> None:
    run = Run(asked_after=3)
    assert run.train(patched, save_every=save_every)
    assert run.happened("step")[-1][1] == 3
    end = run.course[run.course.index(run.happened("step")[-1]) + 1 :]
    assert end == [
        ("metrics", 3, "epoch"), ("wait", 7.0), ("save", 3, None), ("wait", 7.0), ("require", 3),
        ("close",), ("close",),
    ]  # fmt: skip
    assert run.lines == ["the workers stop here: saving step 3"]


@pytest.mark.parametrize("rhythm", [{}, {"translate_every": 5}])
def test_steps_before_a_stop_are_told_though_no_line_is_due(
    patched: Callable[[str, Any], None], rhythm: dict[str, int]
) -> None:
    run = Run(asked_after=5)
    assert run.train(patched, log_every=3, **rhythm)
    assert [line["step"] for line in run.progress] == [3, 5]
    assert [line["step"] for line in run.metrics if "step_seconds" in line] == [3, 5]


@pytest.mark.parametrize("rhythm", [{"evaluate_every": 3}, {"translate_every": 3}])
def test_a_run_that_is_asked_to_stop_validates_and_translates_no_more(
    patched: Callable[[str, Any], None], rhythm: dict[str, int]
) -> None:
    run = Run(asked_after=3)
    assert run.train(patched, save_every=3, log_every=3, **rhythm)
    assert run.happened("validate", "translate") == []
    assert run.happened("save") == [("save", 3, None)]
    assert [event["step"] for event in run.progress] == [3]
    complete = Run(asked_after=3)
    assert not complete.train(patched, max_steps=3, **rhythm)
    assert complete.happened("save") == [("save", 3, 3.0)]


def test_a_run_asked_to_stop_before_its_first_step_saves_nothing(
    patched: Callable[[str, Any], None],
) -> None:
    run = Run(asked_after=5, first_step=5)
    assert run.train(patched)
    assert run.happened("step", "save", "require") == []


def test_a_run_that_is_done_does_nothing_more() -> None:
    run = Run(first_step=12)
    assert not run.train()
    assert run.course == [("from", Position()), ("wait", None), ("close",), ("close",)]


def test_a_save_that_has_ended_is_taken_in_between_two_steps() -> None:
    run = Run(ended_after=2)
    run.train(max_steps=5)
    assert run.happened("concluded") == [("concluded", 2)]
    names = [event[0] for event in run.course if event[0] in ("step", "concluded")]
    assert names == ["step", "step", "concluded", "step", "step", "step"]


WAITS = (
    "step {}: a checkpoint is due, and that of step {} is still under way; it is made once "
    "that has ended"
)


def lines_of_waiting(run: Run) -> list[str]:
    return [line for line in run.lines if "validation" not in line]


def test_a_save_that_is_due_while_one_is_under_way_is_made_once_that_has_ended() -> None:
    run = Run(save_takes=5)
    run.train(save_every=2, max_steps=16)
    assert [event[1] for event in run.happened("step")] == list(range(1, 17))
    # Those of 4 and 6 are one, that of 12 begins at 12, and the last one waits as ever.
    assert run.happened("save", "concluded", "wait") == [
        ("save", 2, None), ("concluded", 7), ("save", 7, None), ("concluded", 12),
        ("save", 12, None), ("save", 16, 16.0), ("wait", None),
    ]  # fmt: skip
    assert lines_of_waiting(run) == [WAITS.format(4, 2), WAITS.format(8, 7), WAITS.format(14, 12)]


def test_one_that_has_ended_by_the_time_it_is_due_is_not_waited_for() -> None:
    run = Run(save_takes=3)
    run.train(save_every=3)
    assert [event[1] for event in run.happened("save")] == [3, 6, 9, 12]
    assert lines_of_waiting(run) == []


def test_where_a_save_may_hang_training_waits_for_it_at_the_next_that_is_due() -> None:
    run = Run(save_takes=100, hangs_after=6)
    run.train(save_every=2, max_steps=10)
    # From step 6 on: `Saver.save` waits, which has an end.
    assert [event[1] for event in run.happened("save")] == [2, 6, 8, 10]
    assert lines_of_waiting(run) == [WAITS.format(4, 2)]


@pytest.mark.parametrize("asked_after", [5, 6, 9])
def test_a_run_asked_to_stop_waits_for_the_save_under_way_and_makes_its_last(
    patched: Callable[[str, Any], None], asked_after: int
) -> None:
    run = Run(save_takes=6, asked_after=asked_after)
    assert run.train(patched, save_every=3)
    end = run.course[run.course.index(run.happened("step")[-1]) + 1 :]
    ended = [("concluded", 9)] if asked_after == 9 else []
    assert end == [
        *ended, ("metrics", asked_after, "epoch"), ("wait", 7.0), ("save", asked_after, None),
        ("wait", 7.0), ("require", asked_after), ("close",), ("close",),
    ]  # fmt: skip


@pytest.fixture
def by_the_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    return lambda run: monkeypatch.setattr(saving.time, "monotonic", lambda: run.now)


def test_saves_are_due_by_the_clock_too(by_the_clock: Callable[[Run], None]) -> None:
    run = Run()
    by_the_clock(run)
    run.train(save_every=0, save_seconds=3 * STEP_SECONDS)
    assert [event[1] for event in run.happened("save")] == [3, 6, 9, 12]
    # The time of a save does not count, nor is a step saved twice; by steps the clock begins anew.
    both = Run()
    by_the_clock(both)
    both.train(save_every=4, save_seconds=3 * STEP_SECONDS)
    assert [event[1] for event in both.happened("save")] == [3, 4, 7, 8, 11, 12]
    odd = Run()
    by_the_clock(odd)
    odd.train(save_every=0, save_seconds=2.5 * STEP_SECONDS, max_steps=8)
    assert [event[1] for event in odd.happened("save")] == [3, 6, 8]


def test_the_clock_asks_for_no_step_that_is_saved_already(monkeypatch: pytest.MonkeyPatch) -> None:
    # Time passes at each look.
    ticks = itertools.count()
    monkeypatch.setattr(saving.time, "monotonic", lambda: next(ticks))
    run = Run(first_step=5)
    run.train(save_every=0, save_seconds=1e-9, max_steps=8)
    assert [event[1] for event in run.happened("save")] == [6, 7, 8]


def test_without_either_the_last_step_alone_is_saved() -> None:
    run = Run()
    run.train(save_every=0)
    assert [event[1] for event in run.happened("save")] == [12]


def test_by_the_clock_too_one_at_a_time_is_written(by_the_clock: Callable[[Run], None]) -> None:
    run = Run(save_takes=5)
    by_the_clock(run)
    run.train(save_every=0, save_seconds=2 * STEP_SECONDS, max_steps=14)
    assert [event[1] for event in run.happened("save")] == [2, 7, 12, 14]
    assert lines_of_waiting(run) == [WAITS.format(4, 2), WAITS.format(9, 7)]


def test_an_error_of_a_step_closes_loader_and_saver() -> None:
    run = Run()

    def failing(*_: Any) -> StepResult:
        raise RuntimeError("no room")

    run.run = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no room"):
        run.train()
    assert run.course[-2:] == [("close",), ("close",)]
    assert run.happened("save", "wait") == []


BEST = {"max_steps": 9, "evaluate_every": 2, "save_every": 0, "keep_best": 2}
LOSSES = {2: 3.0, 4: 3.5, 6: 2.0, 8: 2.0, 9: 2.5}


def test_a_validation_that_is_the_best_so_far_is_followed_by_a_checkpoint() -> None:
    run = Run(losses=LOSSES)
    run.train(**BEST)
    assert run.happened("save") == [("save", 2, 3.0), ("save", 6, 2.0), ("save", 9, 2.5)]
    # Of checkpoints that there are one is better than the first.
    run = Run(losses=LOSSES)
    run.train(**BEST, best_loss=2.5)
    assert run.happened("save") == [("save", 6, 2.0), ("save", 9, 2.5)]
    run = Run(losses=LOSSES)
    run.train(**BEST | {"keep_best": 0})
    assert run.happened("save") == [("save", 9, 2.5)]


def test_the_best_is_saved_once_where_a_checkpoint_is_due_and_others_as_they_are_due() -> None:
    run = Run(losses=LOSSES)
    run.train(**BEST | {"save_every": 3})
    assert [event[1] for event in run.happened("save")] == [2, 3, 6, 9]


def test_the_best_does_not_wait_for_a_checkpoint_to_be_written() -> None:
    run = Run(save_takes=20, losses=LOSSES)
    run.train(**BEST | {"save_every": 1})
    # The others do: that of step 2 is due while that of step 1 is under way.
    assert run.happened("save") == [
        ("save", 1, None), ("save", 2, 3.0), ("save", 6, 2.0), ("save", 9, 2.5),
    ]  # fmt: skip


def test_a_run_that_is_asked_to_stop_at_its_best_saves_it_once(
    patched: Callable[[str, Any], None],
) -> None:
    run = Run(losses=LOSSES)
    validate = run.validate

    def asked_meanwhile() -> float:
        run.asked_after = run.state.step
        return validate()

    run.validate = asked_meanwhile  # type: ignore[method-assign]
    assert run.train(patched, **BEST)
    assert run.happened("save") == [("save", 2, 3.0)]


def test_a_run_asked_to_stop_while_its_best_waits_saves_it_as_its_last(
    patched: Callable[[str, Any], None],
) -> None:
    run = Run(save_takes=20, losses=LOSSES)
    wait = run.wait

    def asked_meanwhile(limit: float | None = None) -> None:
        run.asked_after = run.state.step
        wait(limit)

    run.wait = asked_meanwhile  # type: ignore[method-assign]
    assert run.train(patched, **BEST | {"save_every": 1})
    assert run.happened("save") == [("save", 1, None), ("save", 2, 3.0)]
    assert [event[1] for event in run.happened("step")] == [1, 2]


def test_a_best_whose_save_failed_is_no_bar_for_the_next() -> None:
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6, 9: 9.0}
    for takes in (0, 1):  # training stands still, or goes on
        run = Run(save_takes=takes, losses=losses)
        save = run.save

        def failing(state: Any, check: Any, run: Run = run, save: Any = save) -> None:
            run.publishes = state.step != 4
            save(state, check)

        run.save = failing  # type: ignore[method-assign]
        run.train(**BEST)
        assert [event[1:] for event in run.happened("save")] == [
            (2, 3.0), (4, 2.0), (6, 2.5), (9, 9.0),
        ]  # fmt: skip


def test_what_was_left_out_as_a_run_was_asked_to_stop_is_made_before_it_steps_again(
    patched: Callable[[str, Any], None],
) -> None:
    stopped = Run(asked_after=4, losses=LOSSES)
    rhythm = {"evaluate_every": 2, "translate_every": 4, "max_steps": 6}
    assert stopped.train(patched, **rhythm)
    assert stopped.happened("save")[-1] == ("save", 4, None)
    assert [event[1] for event in stopped.happened("validate", "translate")] == [2]

    def going_on(**more: Any) -> Run:
        run = Run(first_step=4, **more)
        run.state.scalars |= stopped.saved_scalars
        return run

    # Asked to stop again, and then not.
    again = going_on(asked_after=0)
    assert again.train(patched, **rhythm)
    assert again.happened("validate", "translate", "step", "save") == []
    run = going_on()
    assert not run.train(patched, **rhythm, save_every=5, keep_best=1)
    assert [event[:2] for event in run.happened("validate", "translate", "step", "save")] == [
        ("validate", 4), ("translate", 4), ("step", 5), ("save", 5),
        ("step", 6), ("validate", 6), ("translate", 6), ("save", 6),
    ]  # fmt: skip
    assert run.metrics[0]["validation_loss"] == 4.0
    assert run.happened("save")[0] == ("save", 5, None)
    assert "evaluation_left_out" not in run.saved_scalars
