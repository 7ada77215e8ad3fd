"""Runs under Ray, started as a user does and watched from outside: when was which step made?"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_embed.config.load import config_from_dict, config_to_yaml
from dist_embed.config.schema import Config
from dist_embed.errors import RunFailed
from dist_embed.observe.events import Event
from dist_embed.run.metrics import read_metrics

WAIT_SECONDS = 600.0  # for each thing that is waited for
_LOOK_SECONDS = 0.1
_SENTENCES, _BATCH_TOKENS, _WIDTH = 20_000, 2048, 64
_CHECKPOINT_STEPS = 20


def bench_config(folder: str, name: str, **changes: dict[str, Any]) -> Config:
    """A small translation whose data lie in ``folder``, for all runs there.

    It trains until it is asked to stop, and tells each step. What befalls its workers changes
    nothing that it computes but by rounding: there is no dropout, and no schedule.

    Args:
        folder: of the data.
        name: the run's folder is ``folder/name``.
        changes: other values, by section.
    """
    values: dict[str, dict[str, Any]] = {
        "run": {"uri": f"{folder}/{name}"},
        "data": {"uri": f"{folder}/data", "synthetic": {"sentences": _SENTENCES}},
        "tokenizer": {"split_punctuation": False},
        "embedding": {"width": _WIDTH, "schedule": "constant"},
        "model": {"width": _WIDTH, "feed_forward": 2 * _WIDTH, "heads": 4, "encoder_layers": 2,
                  "decoder_layers": 2, "dropout": 0.0, "share_embeddings": "all"},
        "train": {"max_steps": 1_000_000, "batch_tokens": _BATCH_TOKENS, "log_every": 1,
                  "evaluate_every": 1_000_000, "schedule": "constant", "precision": "fp32"},
        "checkpoint": {"every_steps": _CHECKPOINT_STEPS},
        "cluster": {"launcher": "local", "num_workers": 2, "device": "cpu",
                    "threads_per_worker": 1},
    }  # fmt: skip
    for section, others in changes.items():
        values[section] |= others
    return config_from_dict(values)


@dataclass(frozen=True)
class Made:
    """A step of a run.

    Attributes:
        step: its number.
        time: when it was made, in Unix seconds.
        loss: of it.
    """

    step: int
    time: float
    loss: float


def steps_of(run_uri: str) -> list[Made]:
    """The steps that a run has told so far; after a resumption those of its newest course."""
    lines = (line for line in read_metrics(run_uri) if line.get("loss") is not None)
    return [Made(line["step"], line["time"], line["loss"]) for line in lines]


class Command:
    """A ``dist-embed`` command in a process of its own.

    Attributes:
        said: its lines so far.
    """

    def __init__(self, words: list[str], environment: Mapping[str, str]) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dist_embed.cli.main", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=dict(environment),
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(line.rstrip() for line in self.process.stdout)

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait for it. Raises RunFailed where the command ends before, or it takes too long."""
        until(reached, what, self._check)

    def ended(self, *codes: int) -> list[str]:
        """Wait for its end; returns what it has said. Raises RunFailed for another exit code."""
        until(lambda: self.process.poll() is not None, "the end of a command", lambda: None)
        self._listener.join(WAIT_SECONDS)
        if self.process.returncode not in codes:
            raise RunFailed(self._told("has ended"))
        return self.said

    def close(self) -> None:
        """End it, if it has not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _check(self) -> None:
        if self.process.poll() is not None:
            self._listener.join(WAIT_SECONDS)
            raise RunFailed(self._told("has ended too soon"))

    def _told(self, what: str) -> str:
        return "\n".join([f"a run {what}, exit code {self.process.returncode}", *self.said[-20:]])


def until(reached: Callable[[], bool], what: str, check: Callable[[], None]) -> None:
    """Wait until ``reached`` says so. Raises RunFailed after `WAIT_SECONDS`, and what ``check``
    does.
    """
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not reached():
        check()
        if time.monotonic() > give_up_at:
            raise RunFailed(f"{what} has not come within {WAIT_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


@contextmanager
def command(words: list[str], environment: Mapping[str, str]) -> Iterator[Command]:
    """A `Command` that does not outlive the ``with`` block."""
    started = Command(words, environment)
    try:
        yield started
    finally:
        started.close()


def silent(event: Event) -> None:
    """Takes what a run would show."""


def written(config: Config) -> str:
    """The path of a file with a configuration, beside its run."""
    path = Path(f"{config.run.uri}.yaml")
    path.write_text(config_to_yaml(config))
    return str(path)


@contextmanager
def training(config: Config, environment: Mapping[str, str]) -> Iterator[Command]:
    """A run under Ray that has made some steps, and has a checkpoint."""
    words = ["train", written(config), "--launcher", "ray"]
    with command(words, environment) as run:
        run.until(lambda: len(steps_of(config.run.uri)) > 1.5 * _CHECKPOINT_STEPS, "steps of a run")
        yield run


def first_step_after(run: Command, run_uri: str, since: float) -> Made:
    """The first step that workers make who were started again after ``since``."""
    resumed = "resuming from the checkpoint of step "
    before = len(run.said)

    def found() -> Made | None:
        told = [line for line in run.said[before:] if line.startswith(resumed)]
        if not told:
            return None
        first = int(told[0].removeprefix(resumed).split()[0]) + 1
        made = (one for one in steps_of(run_uri) if one.step == first and one.time > since)
        return next(made, None)

    run.until(lambda: found() is not None, "a step of workers that were started again")
    made = found()
    assert made is not None
    return made
