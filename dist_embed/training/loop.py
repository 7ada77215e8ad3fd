"""When to step, log, validate, translate and save. Builds nothing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dist_embed.checkpoint.manifest import METRIC
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import TrainingState
from dist_embed.data.loader import Loader, Position, StepBatches
from dist_embed.errors import UserError
from dist_embed.observe.events import Reporter
from dist_embed.observe.phases import Phases, phase
from dist_embed.parallel.hang import at
from dist_embed.run.metrics import MetricsLog
from dist_embed.training.evaluate import Quality
from dist_embed.training.saving import Saves, ruined
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import StepResult, TrainStep
from dist_embed.training.step_traces import StepTraces
from dist_embed.training.workers import Stragglers, WorkersSpent, spent_by_workers


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; all but ``before_save`` is collective.

    Attributes:
        validate: mean -log p per token of the validation set; None where there is none.
        translate: quality on the validation set; None where there is none.
        before_save: raises, on some worker, where saving would be in vain.
        traces: of some steps; None: of none.
    """

    validate: Callable[[], float] | None
    translate: Callable[[], Quality] | None
    before_save: Callable[[], None] = lambda: None
    traces: StepTraces | None = None


# Among a checkpoint's scalars: what was due after its step was left out, as the run was to stop.
LEFT_OUT = "evaluation_left_out"
_Due: TypeAlias = tuple[Callable[[], float] | None, Callable[[], Quality] | None]


@dataclass
class _Window:
    """Sums over the steps since the last log line."""

    loss: float = 0.0
    nll: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0

    def add(self, result: StepResult, seconds: float) -> None:
        self.seconds += seconds
        self.steps += 1
        if not result.skipped:
            self.loss += result.loss * result.tokens
            self.nll += result.nll * result.tokens
            self.tokens += result.tokens


def train_loop(
    state: TrainingState,
    train_step: TrainStep,
    loader: Loader,
    settings: TrainSection,
    checkpoint: CheckpointSection,
    hooks: Hooks,
    saver: Saver,
    *,
    reporter: Reporter,
    metrics: MetricsLog | None,
    best_loss: float = math.inf,
) -> bool:
    """Train from ``state`` to ``settings.max_steps``, or until any worker is asked to stop.

    Asked to stop, it leaves out what is to be validated or translated after the step, but after the
    last; a run that goes on there makes up for it before it steps. The last checkpoint is written
    when this returns. Which steps others are of: see `Saves`.
    ``metrics`` is given on worker 0 alone; ``best_loss``: see `Saves`.
    Returns whether the run was stopped early. Collective.

    Raises:
        UserError: too many steps in a row without a finite loss and gradient; a validation loss, or
            a value to be saved, that is not finite; what ``hooks.before_save`` raises.
        CheckpointError: saving failed in a way that a run does not go on with; see `Saver`.
    """
    group = state.group
    saves = Saves(state, saver, checkpoint, hooks.before_save, reporter.line, best_loss=best_loss)
    numbers = itertools.count(state.step + 1)
    steps = loader.prefetched(
        Position.from_dict(state.scalars["position"]),
        lambda work: train_step.prepare(next(numbers), work),
    )
    window, phases, stragglers = _Window(), Phases(group.device), Stragglers(group)
    skipped_in_a_row = 0
    first_step = state.step
    stopped = False
    following: StepBatches | None = None
    try:
        # Of no checkpoint: that of this step says nothing of it, and is not written again.
        if LEFT_OUT in state.scalars and not saves.between_steps():
            _evaluate(state, _due(state.step, hooks, settings), saver, reporter, metrics)
        while state.step < settings.max_steps:
            if hooks.traces:
                hooks.traces.before(state.step + 1, phases)
            with phases.recorded():
                at(f"step {state.step + 1}")
                with phase("agreement"):
                    stopped = saves.between_steps()
                with phase("checkpoint stall"):
                    stopped = stopped or saves.save_if_due()
                if stopped:
                    break
                at(f"step {state.step + 1}")
                started = time.perf_counter()
                # Data that cannot be read are an error one step before they are needed; what has
                # been saved by then is kept.
                with phase("data wait"):
                    work = following or next(steps).to(group.device)
                    more = state.step + 1 < settings.max_steps
                    following = next(steps).to(group.device) if more else None
                result = train_step.run(state.step + 1, work, following)
                window.add(result, time.perf_counter() - started)
            state.step += 1
            if hooks.traces:
                hooks.traces.after(state.step)
            state.scalars["position"] = work.after.to_dict()
            for name in (METRIC, LEFT_OUT):  # a checkpoint carries its own step's, or none
                state.scalars.pop(name, None)
            skipped_in_a_row = _note_skip(state, result, skipped_in_a_row, settings, reporter)
            last = state.step == settings.max_steps
            validate, translate = due = _due(state.step, hooks, settings)
            if last or validate or state.step % settings.log_every == 0:
                spent = spent_by_workers(phases.take(), group)
                _log(state, result, window, spent, settings, reporter, metrics)
                for line in stragglers.lines(spent):
                    reporter.line(line)
                window = _Window()
            # Either may take longer than a run that is asked to stop has left. A run that is
            # complete has its figures all the same.
            if (validate or translate) and not last and (stopped := saves.between_steps()):
                state.scalars[LEFT_OUT] = True
                break
            _evaluate(state, due, saver, reporter, metrics)
            if validate:
                saves.note_validation(state.scalars[METRIC])
            saves.note_step()
            if last:
                saves.save()
        at(None)
        saver.wait(checkpoint.drain_seconds if stopped else None)
        if stopped and state.step != first_step:
            reporter.line(f"asked to stop: saving step {state.step}")
            saves.save()
            saver.wait(checkpoint.drain_seconds)
        if state.step != first_step:
            saver.require(state.step)
    finally:
        saver.close()
        steps.close()
    return stopped


def _due(step: int, hooks: Hooks, settings: TrainSection) -> _Due:
    last = step >= settings.max_steps

    def is_due(every: int) -> bool:
        return every > 0 and (last or step % every == 0)

    return (
        hooks.validate if is_due(settings.evaluate_every) else None,
        hooks.translate if is_due(settings.translate_every) else None,
    )


def _evaluate(
    state: TrainingState,
    due: _Due,
    saver: Saver,
    reporter: Reporter,
    metrics: MetricsLog | None,
) -> None:
    """Validate and translate what is due. Collective."""
    validate, translate = due
    at(None)  # either may take long
    if validate:
        _validate(state, validate(), saver, reporter, metrics)
    if translate:
        _report_quality(state, translate(), reporter, metrics)


def _note_skip(
    state: TrainingState,
    result: StepResult,
    in_a_row: int,
    settings: TrainSection,
    reporter: Reporter,
) -> int:
    if not result.skipped:
        return 0
    state.scalars["skipped_steps"] += 1
    reporter.line(
        f"step {state.step} skipped: loss {result.loss} or its gradient is not finite; "
        f"nothing was changed ({state.scalars['skipped_steps']} skipped so far)"
    )
    if in_a_row + 1 >= settings.max_skipped_steps:
        raise UserError(
            f"{in_a_row + 1} steps in a row had a non-finite loss or gradient "
            f"(train.max_skipped_steps={settings.max_skipped_steps}); lower train.learning_rate or "
            "embedding.learning_rate, set train.clip_norm, or use train.precision=fp32"
        )
    return in_a_row + 1


def _log(
    state: TrainingState,
    result: StepResult,
    window: _Window,
    spent: WorkersSpent,
    settings: TrainSection,
    reporter: Reporter,
    metrics: MetricsLog | None,
) -> None:
    loss = window.loss / window.tokens if window.tokens else math.nan
    nll = window.nll / window.tokens if window.tokens else math.nan
    tokens_per_second = window.tokens / window.seconds
    step_seconds = window.seconds / window.steps
    if metrics is not None:
        metrics.write(
            state.step,
            loss=loss if math.isfinite(loss) else None,
            nll=nll if math.isfinite(nll) else None,
            tokens_per_second=tokens_per_second,
            step_seconds=step_seconds,
            steps=window.steps,
            gradient_norm=result.gradient_norm,
            skipped_steps=state.scalars["skipped_steps"],
            epoch=state.scalars["position"]["epoch"],
            **spent.as_metrics(),
        )
    reporter.progress(
        step=state.step,
        max_steps=settings.max_steps,
        loss=loss,
        tokens_per_second=tokens_per_second,
        eta_seconds=(settings.max_steps - state.step) * step_seconds,
        workers=spent.as_event(),
    )


def _validate(
    state: TrainingState,
    loss: float,
    saver: Saver,
    reporter: Reporter,
    metrics: MetricsLog | None,
) -> None:
    """Note a validation loss.

    One that is not finite ends the run before its step is saved (decision 19). Not collective, but
    the same on every worker.
    """
    perplexity = math.exp(min(loss, 700.0))  # beyond that a float overflows
    if metrics is not None:
        metrics.write(state.step, validation_loss=loss, validation_perplexity=perplexity)
    reporter.line(f"step {state.step}: validation loss {loss:.4f}, perplexity {perplexity:.2f}")
    if not math.isfinite(loss):
        raise UserError(f"step {state.step}: the validation loss is {loss}; {ruined(saver)}")
    state.scalars[METRIC] = loss


def _report_quality(
    state: TrainingState, quality: Quality, reporter: Reporter, metrics: MetricsLog | None
) -> None:
    if metrics is not None:
        metrics.write(
            state.step, validation_bleu=quality.bleu, validation_chrf=quality.chrf,
            scored_by=quality.signature, samples=quality.samples,
            neighbors=quality.neighbors,
        )  # fmt: skip
    reporter.line(
        f"step {state.step}: validation BLEU {quality.bleu:.2f}, chrF {quality.chrf:.2f} "
        f"({quality.sentences} sentences in {quality.seconds:.0f} s)"
    )
