"""When to step, log, validate, translate and save. Builds nothing."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from dist_embed.training.workers import Stragglers, spent_by_workers


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


@dataclass
class _Window:
    """Sums over the steps since the last log line."""

    loss: float = 0.0
    nll: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    gradient_norm: float | None = None  # of the last

    def add(self, result: StepResult, seconds: float) -> None:
        self.gradient_norm = result.gradient_norm
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
    saves = Saves(state, saver, checkpoint, hooks.before_save, reporter.line, best_loss=best_loss)
    numbers = itertools.count(state.step + 1)
    steps = loader.prefetched(
        Position.from_dict(state.scalars["position"]),
        lambda work: train_step.prepare(next(numbers), work),
    )
    first_step = state.step
    course = _Course(state, train_step, settings, hooks, saver, saves, reporter, metrics)
    try:
        stopped = course.run(steps)
        at(None)
        course.log()
        saver.wait(checkpoint.drain_seconds if stopped else None)
        if stopped and state.step != first_step:
            reporter.line(f"the workers stop here: saving step {state.step}")
            saves.save()
            saver.wait(checkpoint.drain_seconds)
        if state.step != first_step:
            saver.require(state.step)
    finally:
        saver.close()
        steps.close()
    return stopped


class _Course:
    """The steps of a run, and what happens between them; arguments as those of `train_loop`."""

    def __init__(
        self,
        state: TrainingState,
        train_step: TrainStep,
        settings: TrainSection,
        hooks: Hooks,
        saver: Saver,
        saves: Saves,
        reporter: Reporter,
        metrics: MetricsLog | None,
    ) -> None:
        self._state = state
        self._train_step = train_step
        self._settings = settings
        self._hooks = hooks
        self._saver = saver
        self._saves = saves
        self._reporter = reporter
        self._metrics = metrics
        self._window = _Window()
        self._resumed_at: int | None = state.step  # until a line has said so
        self._phases = Phases(state.group.device)
        self._stragglers = Stragglers(state.group)
        self._skipped_in_a_row = 0

    def run(self, steps: Iterator[StepBatches]) -> bool:
        """Train to the last step; returns whether it was stopped early. Collective."""
        state, device = self._state, self._state.group.device
        traces, max_steps = self._hooks.traces, self._settings.max_steps
        # Of no checkpoint: that of this step says nothing of it, and is not written again.
        if LEFT_OUT in state.scalars and not self._saves.between_steps():
            self._evaluate(*self._due())
        following: StepBatches | None = None
        while state.step < max_steps:
            number = state.step + 1
            if traces:
                traces.before(number, self._phases)
            with self._phases.recorded():
                if self._is_to_stop():
                    return True
                at(f"step {number}")
                started = time.perf_counter()
                # Data that cannot be read are an error one step before they are needed; what has
                # been saved by then is kept.
                with phase("data wait"):
                    work = following or next(steps).to(device)
                    following = next(steps).to(device) if number < max_steps else None
                result = self._train_step.run(number, work, following)
                self._window.add(result, time.perf_counter() - started)
            state.step = number
            if traces:
                traces.after(number)
            self._note(result, work.after)
            if not self._look_at_model():
                return True
        return False

    def _is_to_stop(self) -> bool:
        """Take in what has been saved, and save if that is due. Collective."""
        at(f"step {self._state.step + 1}")
        with phase("agreement"):
            stopped = self._saves.between_steps()
        with phase("checkpoint stall"):
            return stopped or self._saves.save_if_due()

    def _note(self, result: StepResult, after: Position) -> None:
        """A step is done, with the data up to ``after``.

        Raises UserError: too many in a row were skipped.
        """
        scalars, most = self._state.scalars, self._settings.max_skipped_steps
        scalars["position"] = after.to_dict()
        for name in (METRIC, LEFT_OUT):  # a checkpoint carries its own step's, or none
            scalars.pop(name, None)
        if not result.skipped:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        scalars["skipped_steps"] += 1
        self._reporter.line(
            f"step {self._state.step} skipped: loss {result.loss} or its gradient is not finite; "
            f"nothing was changed ({scalars['skipped_steps']} skipped so far)"
        )
        if self._skipped_in_a_row >= most:
            raise UserError(
                f"{self._skipped_in_a_row} steps in a row had a non-finite loss or gradient "
                f"(train.max_skipped_steps={most}); lower train.learning_rate or "
                "embedding.learning_rate, set train.clip_norm, or use train.precision=fp32"
            )

    def _look_at_model(self) -> bool:
        """Log, validate, translate and save, as far as each is due; False: the run is to stop.
        Collective.
        """
        state = self._state
        last = state.step == self._settings.max_steps
        validate, translate = self._due()
        if last or validate or state.step % self._settings.log_every == 0:
            self.log()
        # Either may take longer than a run that is asked to stop has left. A run that is complete
        # has its figures all the same.
        if (validate or translate) and not last and self._saves.between_steps():
            state.scalars[LEFT_OUT] = True
            return False
        self._evaluate(validate, translate)
        if validate:
            self._saves.note_validation(state.scalars[METRIC])
        self._saves.note_step()
        if last:
            self._saves.save()
        return True

    def _due(self) -> tuple[Callable[[], float] | None, Callable[[], Quality] | None]:
        """What validates and translates, where that is due after the step that is done."""
        step = self._state.step
        last = step >= self._settings.max_steps

        def is_due(every: int) -> bool:
            return every > 0 and (last or step % every == 0)

        return (
            self._hooks.validate if is_due(self._settings.evaluate_every) else None,
            self._hooks.translate if is_due(self._settings.translate_every) else None,
        )

    def _evaluate(
        self, validate: Callable[[], float] | None, translate: Callable[[], Quality] | None
    ) -> None:
        """Collective."""
        at(None)  # either may take long
        if validate:
            self._note_loss(validate())
        if translate:
            self._note_quality(translate())

    def log(self) -> None:
        """Tell of the steps since this was last called, if there were any. Collective."""
        state, window = self._state, self._window
        if not window.steps:
            return
        spent = spent_by_workers(self._phases.take(), state.group)
        loss = window.loss / window.tokens if window.tokens else math.nan
        nll = window.nll / window.tokens if window.tokens else math.nan
        tokens_per_second = window.tokens / window.seconds
        step_seconds = window.seconds / window.steps
        if self._metrics is not None:
            rates = self._train_step.rates
            self._metrics.write(
                state.step,
                loss=loss,  # NaN too: a gap in a chart
                nll=nll,
                learning_rate=rates.dense.rate(state.step),
                table_learning_rate=rates.tables.rate(state.step),
                tokens_per_second=tokens_per_second,
                step_seconds=step_seconds,
                steps=window.steps,
                gradient_norm=window.gradient_norm,
                skipped_steps=state.scalars["skipped_steps"],
                epoch=state.scalars["position"]["epoch"],
                resumed_at=self._resumed_at,
                **spent.as_metrics(),
            )
        self._reporter.progress(
            step=state.step,
            max_steps=self._settings.max_steps,
            loss=loss,
            tokens_per_second=tokens_per_second,
            eta_seconds=(self._settings.max_steps - state.step) * step_seconds,
            workers=spent.as_event(),
        )
        for line in self._stragglers.lines(spent):
            self._reporter.line(line)
        self._window, self._resumed_at = _Window(), None

    def _note_loss(self, loss: float) -> None:
        """Of a validation. One that is not finite ends the run before its step is saved (decision
        19). Not collective, but the same on every worker.
        """
        step = self._state.step
        perplexity = math.exp(min(loss, 700.0))  # beyond that a float overflows
        if self._metrics is not None:
            self._metrics.write(step, validation_loss=loss, validation_perplexity=perplexity)
        self._reporter.line(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity:.2f}")
        if not math.isfinite(loss):
            raise UserError(f"step {step}: the validation loss is {loss}; {ruined(self._saver)}")
        self._state.scalars[METRIC] = loss

    def _note_quality(self, quality: Quality) -> None:
        if self._metrics is not None:
            self._metrics.write(
                self._state.step, validation_bleu=quality.bleu, validation_chrf=quality.chrf,
                scored_by=quality.signature, samples=quality.samples,
                neighbors=quality.neighbors,
            )  # fmt: skip
        self._reporter.line(
            f"step {self._state.step}: validation BLEU {quality.bleu:.2f}, "
            f"chrF {quality.chrf:.2f} ({quality.sentences} sentences in {quality.seconds:.0f} s)"
        )
