"""What a step spends its time on: its phases by name, and the waits for other workers in them.

Code of a step names its phases by ``with phase(…)`` wherever it lies. They are recorded while a
worker's `Phases` are current, which is in steps of training alone; elsewhere they do nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.profiler import record_function

from dist_embed.observe.clocks import Clock, clock_of
from dist_embed.observe.phase_names import PHASES, PhaseName

STEP, WAITING = "step", "waiting for workers"  # the whole, and what of it is no work of its own


@dataclass(frozen=True)
class Spent:
    """What a worker has done since it was asked before.

    Attributes:
        phases: seconds by name, of each of `PHASES`.
        own_seconds: in steps, without those spent waiting for other workers and for what they send.
        seconds: in steps.
        rows_requested: distinct rows that it looked up, summed over steps.
    """

    phases: dict[str, float]
    own_seconds: float
    seconds: float
    rows_requested: int


class Phases:
    """Records a worker's phases: on the CPU by the host's clock, on CUDA by the device's.

    A GPU's host never waits for it: what the device has not done yet counts later.

    Attributes:
        annotate: whether phases go to torch.profiler too, under their names.
        begun: how many there were.
        open: the one that the host is in; none: empty.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = _Sums(clock_of(device))
        self._rows = 0
        self.annotate = False
        self.begun = 0
        self.open = ""

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what the block does, which is a step's."""
        global _current
        before, _current = _current, self
        try:
            with self.span(STEP):
                yield
        finally:
            _current = before
            self._sums.collect()

    def span(self, name: str) -> AbstractContextManager[None]:
        """A block whose time counts under ``name``."""
        return _Span(self._sums, name, self.annotate)

    def phase(self, name: PhaseName) -> AbstractContextManager[None]:
        """See the function of that name."""
        return _PhaseSpan(self, name)

    def take(self) -> Spent:
        """What was recorded since the last call."""
        seconds, rows, self._rows = self._sums.take(), self._rows, 0
        return Spent(
            {name: seconds[name] for name in PHASES},
            max(0.0, seconds[STEP] - seconds[WAITING]),
            seconds[STEP],
            rows,
        )

    def note_rows(self, count: int) -> None:
        """That so many more rows were requested."""
        self._rows += count

    @contextmanager
    def waiting_after(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """See the function of that name."""
        begun: list[Any] = []

        def note(leaf: Tensor) -> None:
            del leaf
            begun[:] = [self._sums.clock.mark()]

        hooks = [
            leaf.register_post_accumulate_grad_hook(note) for leaf in leaves if leaf.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if begun:
            self._sums.add(WAITING, begun[0])

    @contextmanager
    def waiting_until(self, nodes: Iterable[Node]) -> Iterator[None]:
        """See the function of that name."""
        begun = [self._sums.clock.mark()]

        def note(gradients: tuple[Tensor, ...]) -> None:
            del gradients
            if begun:
                self._sums.add(WAITING, begun.pop())

        hooks = [node.register_prehook(note) for node in nodes]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


_current: Phases | None = None  # a worker's process has one training; its loader's threads no phase
_NOTHING = nullcontext()


def phase(name: PhaseName) -> AbstractContextManager[None]:
    """A block that is a phase of the step, where one is recorded. Phases do not nest."""
    return _NOTHING if _current is None else _current.phase(name)


def phase_now() -> tuple[int, str]:
    """How many phases the step that is recorded, and those before it, have begun, and the one that
    it is in, if it is in one. From any thread.
    """
    current = _current
    return (0, "") if current is None else (current.begun, current.open)


def waiting() -> AbstractContextManager[None]:
    """A block, within a phase or not, that waits for other workers or what they send."""
    return _NOTHING if _current is None else _current.span(WAITING)


def waiting_after(leaves: Iterable[Tensor]) -> AbstractContextManager[None]:
    """A block that is a backward: what comes after the gradients of ``leaves``, the last that it
    computes, is the end of DDP's exchange, which cannot be seen otherwise.
    """
    return _NOTHING if _current is None else _current.waiting_after(leaves)


def waiting_until(nodes: Iterable[Node]) -> AbstractContextManager[None]:
    """A block that is a backward: what comes before the first of ``nodes`` is an exchange."""
    return _NOTHING if _current is None else _current.waiting_until(nodes)


def note_rows(count: int) -> None:
    """That a worker requests so many distinct rows, where its step is recorded."""
    if _current is not None:
        _current.note_rows(count)


class _Sums:
    """Seconds by name; of a device's spans those that it has passed."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._spans: deque[tuple[str, Any, Any]] = deque()  # a device's, in the order of their ends

    def add(self, name: str, begin: Any) -> None:
        """A span of that name, from ``begin`` to now."""
        self._spans.append((name, begin, self.clock.mark()))

    def collect(self) -> None:
        """Sum up the spans that have ended; what the device has not done yet is left."""
        while self._spans and self.clock.has_passed(self._spans[0][2]):
            name, begin, end = self._spans.popleft()
            self._seconds[name] += self.clock.between(begin, end)
            self.clock.give_back(begin, end)

    def take(self) -> defaultdict[str, float]:
        """What was summed up since the last call."""
        self.collect()
        seconds, self._seconds = self._seconds, defaultdict(float)
        return seconds


class _Span(AbstractContextManager[None]):
    # No generator: a step has dozens, which would take a measurable part of a short one.
    __slots__ = ("_annotation", "_begin", "_name", "_sums")

    def __init__(self, sums: _Sums, name: str, annotate: bool) -> None:
        self._sums = sums
        self._name = name
        self._annotation = record_function(name) if annotate else None

    def __enter__(self) -> None:
        if self._annotation is not None:
            self._annotation.__enter__()
        self._begin = self._sums.clock.mark()

    def __exit__(self, *raised: Any) -> None:
        self._sums.add(self._name, self._begin)
        if self._annotation is not None:
            self._annotation.__exit__(*raised)


class _PhaseSpan(_Span):
    __slots__ = ("_phases",)

    def __init__(self, phases: Phases, name: PhaseName) -> None:
        super().__init__(phases._sums, name, phases.annotate)
        self._phases = phases

    def __enter__(self) -> None:
        self._phases.begun += 1
        self._phases.open = self._name
        super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._phases.open = ""
