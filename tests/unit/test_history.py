from __future__ import annotations

import math

import pytest

from dist_embed.run.history import course_of, ways_of_scoring


def test_a_row_per_validation_with_the_time_spent_in_steps() -> None:
    lines = [
        {"step": 10, "time": 100.0, "step_seconds": 2.0, "tokens_per_second": 50.0, "epoch": 0},
        {"step": 20, "time": 130.0, "step_seconds": 1.0, "tokens_per_second": 70.0, "epoch": 1},
        {"step": 20, "time": 160.0, "validation_loss": 1.0, "validation_perplexity": 2.7},
        {"step": 20, "time": 190.0, "validation_bleu": 33.0, "validation_chrf": 60.0},
        {"step": 30, "time": 220.0, "step_seconds": 3.0, "tokens_per_second": 40.0, "epoch": 1},
        {"step": 30, "time": 250.0, "validation_loss": 0.9, "validation_perplexity": 2.5},
    ]
    first, second = course_of(lines)
    assert (first.step, first.epoch, first.bleu, first.perplexity) == (20, 1, 33.0, 2.7)
    assert first.step_minutes == pytest.approx(0.5)
    assert first.wall_minutes == pytest.approx((60 + 20) / 60)
    assert first.tokens_per_second == 60.0
    assert (second.bleu, second.tokens_per_second) == (None, 40.0)
    assert second.step_minutes == pytest.approx(1.0)
    assert second.wall_minutes == pytest.approx((150 + 20) / 60)


def test_a_validation_knows_the_time_that_its_steps_have_taken() -> None:
    # The loop writes a line of steps before each validation, whatever train.log_every.
    lines = [
        {"step": 10, "time": 100.0, "step_seconds": 2.0, "tokens_per_second": 50.0, "epoch": 0},
        {"step": 10, "time": 103.0, "validation_loss": 1.0, "validation_perplexity": 2.7},
    ]
    (only,) = course_of(lines)
    assert only.step_minutes == pytest.approx(20 / 60)
    assert only.wall_minutes == pytest.approx(23 / 60)


def test_a_validation_before_any_line_of_steps_has_no_speed() -> None:
    (only,) = course_of([{"step": 7, "time": 100.0, "validation_perplexity": 2.7}])
    assert (only.step, only.epoch, only.step_minutes, only.wall_minutes) == (7, 0, 0.0, 0.0)
    assert math.isnan(only.tokens_per_second)


def test_a_translation_belongs_to_the_validation_of_its_own_step() -> None:
    lines = [
        {"step": 10, "time": 100.0, "validation_bleu": 30.0},
        {"step": 10, "time": 100.0, "validation_perplexity": 2.7},
        {"step": 20, "time": 130.0, "validation_perplexity": None},  # was not finite
        {"step": 20, "time": 130.0, "validation_bleu": 33.0},
    ]
    (only,) = course_of(lines)
    assert (only.step, only.bleu) == (10, None)


def test_it_is_said_where_a_run_was_scored_in_another_way_by_and_by() -> None:
    def said(*ways: str | None) -> list[str]:
        lines: list[dict[str, object]] = []
        for step, way in enumerate(ways, start=1):
            told = {} if way is None else {"scored_by": way}
            lines += [
                {"step": step, "time": 1.0, "validation_perplexity": 2.0},
                {"step": step, "time": 1.0, "validation_bleu": 1.0, **told},
            ]
        return ways_of_scoring(
            course_of([*lines, {"step": 9, "time": 1.0, "validation_perplexity": 2}])
        )

    assert said() == said(None, None) == []
    assert said("a", "a") == ["BLEU is a"]
    assert said(None, None, "a", "a", "b")[1:] == [
        "from step 1: as an earlier version did", "from step 3: a", "from step 5: b"
    ]  # fmt: skip


def test_no_lines_no_rows() -> None:
    assert course_of([]) == []
