"""A run under Ray that something befalls, for tests, and one that nothing does."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.run.metrics import read_metrics
from tests.integration.conftest import tiny_config
from tests.integration.run_metrics import metrics

COMMAND = [sys.executable, "-m", "dist_embed.cli.main"]
SECONDS = 1200.0  # for each thing that is waited for: a start takes ten minutes on a busy machine
# So that the first steps of runs of any length are the same.
SAME_AT_ANY_LENGTH = (
    "train.schedule=constant", "embedding.schedule=constant", "train.evaluate_every=100000",
    "model.dropout=0",
    # Else rounding would grow sooner.
    "train.learning_rate=0.00001", "embedding.learning_rate=0.0001",
)  # fmt: skip
# Of the loss, relative. With other numbers of workers it rounds otherwise, by some 1e-7; one update
# that is lost changes it by 1e-4 (test_lost_update.py).
LOSS_TOLERANCE = 1e-5
# Up to which losses are compared: rounding grows. Tried, 3e-7 at 600, 0.02 at 1500.
MOST_COMPARED_STEPS = 600


class Undisturbed:
    """A run by local processes, made as far as it is asked for, and the data of all like it.

    Args:
        folder: for its files.
        settings: beside those of `tiny_config`.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self._run = str(folder / "whole")
        self.train = ["train", tiny_config(folder), f"data.uri={folder / 'data'}", *settings]

    def prepare(self) -> None:
        """So that runs under Ray find the data."""
        self._command("prepare", *self.train[1:])

    def metrics(self, steps: int, key: str = "loss") -> dict[int, float]:
        """Of so many steps."""
        if max(metrics(self._run), default=0) < steps:
            self._command(
                *self.train, f"run.uri={self._run}", "--launcher", "local",
                f"train.max_steps={steps}",
            )  # fmt: skip
        return {step: one for step, one in metrics(self._run, key).items() if step <= steps}

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Training:
    """A run like ``whole`` under a cluster of Ray.

    Args:
        whole: `SAME_AT_ANY_LENGTH`.
        run_uri: of this one.
        address: of the cluster.
        settings: of this one alone.
        within: what is put before the command.

    Attributes:
        said: lines of the command so far.
    """

    def __init__(
        self, whole: Undisturbed, run_uri: str, address: str, *settings: str,
        within: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._whole = whole
        self.run = run_uri
        self._command = [
            *within, *COMMAND, *whole.train, f"run.uri={run_uri}", "--launcher", "ray",
            f"cluster.address={address}", "checkpoint.every_steps=20", *settings,
        ]  # fmt: skip
        self.said: list[str] = []

    @contextmanager
    def started(self, *settings: str) -> Iterator[subprocess.Popen[str]]:
        """The command, which is killed at the end of the block where it has not ended by then."""
        self.process = subprocess.Popen(
            [*self._command, *settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            yield self.process
        finally:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())

    def losses(self) -> dict[int, float]:
        return metrics(self.run)

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not reached():
            assert self.process.poll() is None, "\n".join(self.said)
            assert time.monotonic() < deadline, "\n".join(self.said)
            time.sleep(0.1)

    def until_step(self, step: int) -> None:
        self.until(lambda: max(self.losses(), default=0) >= step)

    def starts(self) -> int:
        """How often workers have begun to train."""
        begun = ("starting from scratch", "resuming from the checkpoint of step ")
        return sum(line.startswith(begun) for line in self.said)

    def until_said(self, text: str, times: int = 1) -> None:
        self.until(lambda: sum(text in line for line in self.said) >= times)

    def ended(self, code: int = 0) -> str:
        ended = self.process.wait(SECONDS)
        self._listener.join(SECONDS)
        assert ended == code, "\n".join(self.said)
        return "\n".join(self.said)

    def is_as_if_not(self, steps: int | None = None) -> None:
        """Each step of the course, of so many, once, on the text of the undisturbed run, and with
        its loss as far as rounding allows that.
        """
        newest = list_steps(self.run)[-1]
        steps = newest if steps is None else steps
        assert newest == steps
        told = [line["step"] for line in read_metrics(self.run) if "loss" in line]
        assert told == list(range(1, steps + 1))
        found = self.losses()
        whole = self._whole.metrics(steps)
        assert list(whole) == told
        for step, loss in list(whole.items())[:MOST_COMPARED_STEPS]:
            same = math.isclose(found[step], loss, rel_tol=LOSS_TOLERANCE)
            assert same, (step, found[step], loss)
        # What a step trains on, in words: the same sentences make the same number of them.
        assert metrics(self.run, "epoch") == self._whole.metrics(steps, "epoch")
