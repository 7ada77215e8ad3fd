"""Where the time of a configuration's training step goes, by torch.profiler."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from torch.profiler import profile, record_function

from dist_embed.bench.device_tables import build_filled_translator
from dist_embed.bench.host_waits import told_waits
from dist_embed.bench.tasks import ProfileSteps
from dist_embed.bench.trace import WINDOW, read_trace
from dist_embed.bench.workers import meet, steps_of_data
from dist_embed.data.loader import StepBatches
from dist_embed.observe.phases import Phases
from dist_embed.parallel.device import device_name
from dist_embed.run.data import data_of_all
from dist_embed.training.assemble import build_dense_optimizer
from dist_embed.training.step import TrainStep
from dist_embed.training.step_traces import activities_on
from dist_embed.training.train import build_train_step, output_of_data
from dist_embed.training.worker import Context

# While the profiler is on, but before the window: it begins to record with some work of its own.
_FIRST_RECORDED = 2


def step_task(context: Context, asked: ProfileSteps) -> dict[str, Any]:
    """Time, trace and host waits of training steps, prepared before as a run's loader does.
    Collective.
    """
    group, count = context.group, asked.steps
    device = group.device
    before = count + _FIRST_RECORDED
    # None of them is the last.
    step, works = built_steps(context, asked.data_folder, before + count + 2)
    phases = Phases(device)

    def run(first: int, number: int) -> None:
        for place in range(first, first + number):
            with phases.recorded():
                step.run(place + 1, works[place], works[place + 1])

    # Every batch once: sizes that are new have a GPU's allocator wait.
    run(0, before + count + 1)
    run(count, _FIRST_RECORDED)  # the first of what is timed has been asked for, as in a run
    phases.take()
    started = meet(group)
    run(before, count)
    seconds = (meet(group) - started) / count
    spent = phases.take()
    phases.annotate = True
    with profile(activities=activities_on(device)) if group.is_first else nullcontext() as profiler:
        run(count, _FIRST_RECORDED)
        meet(group)
        with record_function(WINDOW):
            run(before, count)
            meet(group)
    phases.annotate = False
    with told_waits() as places:
        run(before + count, 1)
    if profiler is None:
        return {}
    profiler.export_chrome_trace(asked.trace)
    found = read_trace(asked.trace)
    busy = found.busy_seconds
    return {
        "workers": group.num_workers,
        "device": device_name(device),
        "on_cuda": device.type == "cuda",
        "steps": count,
        "tokens_per_step": sum(work.global_tokens for work in works[before : before + count])
        / count,
        "seconds_per_step": seconds,
        "seconds_per_step_recorded": found.seconds,
        "phases": {name: seconds / count for name, seconds in spent.phases.items()},
        "own_seconds_per_step": spent.own_seconds / count,
        "device_busy_seconds": busy,
        # Of steps that are not recorded: recording lets the host fall behind.
        "device_idle_share": None if busy is None else max(0.0, 1 - busy / seconds),
        "on_device": [asdict(entry) for entry in found.on_device],
        "on_host": [asdict(entry) for entry in found.on_host],
        "waits": [asdict(entry) for entry in found.waits],
        "waits_by_place": dict(places),
        "trace": asked.trace,
    }


def built_steps(
    context: Context, data_folder: str | None, count: int
) -> tuple[TrainStep, list[StepBatches]]:
    """What runs the configured step, and the first ``count`` steps of it. Collective."""
    config, group = context.config, context.group
    data = data_of_all(config, group, data_folder)
    translation_model = build_filled_translator(config, data.vocabulary_size, group)
    optimizer = build_dense_optimizer(config, translation_model.transformer)
    output = output_of_data(config, translation_model, data)
    step = build_train_step(config, translation_model, output, optimizer)
    works = steps_of_data(config, data, group, accumulate=config.train.accumulate)
    given = zip(range(1, count + 1), works, strict=False)
    return step, [step.prepare(number, work).to(group.device) for number, work in given]
