"""Some steps of a run under torch.profiler: a trace of each worker, in the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dist_embed.checkpoint.save_under_way import one_line
from dist_embed.observe.phases import Phases
from dist_embed.parallel.collectives import gather_texts
from dist_embed.parallel.group import Group
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import temporary_folder

FOLDER = "profile"


class StepTraces:
    """Records the steps ``first`` to ``last``, or those of them that this start of a run makes.

    As a context manager: at its end what is recorded by then is written, after an error nothing.
    Traces that cannot be written are told, and training goes on.
    What a worker does there is collective.

    Args:
        first: step, from 1.
        last: step.
        run_uri: the run's folder or URL; the traces are ``profile/worker-K.json.gz`` there.
        group: whose workers record.
        say: takes a line for the user.
    """

    def __init__(
        self, first: int, last: int, run_uri: str, group: Group, say: Callable[[str], None]
    ) -> None:
        self._first, self._last = first, last
        self._folder = storage.join(run_uri, FOLDER)
        self._group = group
        self._say = say
        self._profiler: profile | None = None
        self._error = ""
        self._told = False
        self._begun = self._done = 0

    def before(self, step: int, phases: Phases) -> None:
        """A step is to be made, whose ``phases`` are recorded."""
        wanted = self._first <= step <= self._last
        if wanted and not self._begun:
            self._begun = step
            self._start()
        phases.annotate = wanted

    def after(self, step: int) -> None:
        """A step has been made; after the last one the traces are written."""
        self._done = step
        if step == self._last:
            self._write()

    def _start(self) -> None:
        try:
            profiler = profile(activities=activities_on(self._group.device))
            profiler.start()
            self._profiler = profiler
        except Exception as exc:  # training is worth more
            logging.getLogger(__name__).error("no steps recorded", exc_info=exc)
            self._error = one_line(exc)

    def _write(self) -> None:
        """End, and write what was recorded, if anything."""
        if not self._begun or self._told:
            return
        self._told = True
        profiler, self._profiler = self._profiler, None
        name = f"worker-{self._group.rank}.json.gz"
        if profiler is not None:
            try:
                with temporary_folder("dist_embed-profile-") as folder:
                    profiler.stop()
                    trace = Path(folder) / name
                    profiler.export_chrome_trace(str(trace))
                    storage.write_bytes(storage.join(self._folder, name), trace.read_bytes())
            except Exception as exc:
                logging.getLogger(__name__).error("%s not written", name, exc_info=exc)
                self._error = one_line(exc)
        told = gather_texts(self._error, self._group)
        if failed := [rank for rank, text in enumerate(told) if text]:
            self._say(
                f"steps {self._begun} to {self._done} recorded, but the traces of {len(failed)} of "
                f"{len(told)} workers could not be written; worker {failed[0]}: {told[failed[0]]}"
            )
            return
        self._say(
            f"steps {self._begun} to {self._done} recorded, for ui.perfetto.dev: "
            f"{storage.join(self._folder, 'worker-0.json.gz')}, and so for every worker"
        )

    def __enter__(self) -> StepTraces:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write()
        elif self._profiler is not None:
            with suppress(Exception):  # the error that is under way is told
                self._profiler.stop()


def activities_on(device: torch.device) -> list[ProfilerActivity]:
    """What torch.profiler can record where steps run on a device."""
    on_cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return [ProfilerActivity.CPU, *on_cuda]
