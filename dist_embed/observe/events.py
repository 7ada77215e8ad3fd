"""What a run tells its user: lines and progress, from worker 0 to whatever screen there is."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol, TypeVar

from tqdm import tqdm

from dist_embed.passwords import masked
from dist_embed.streams import Forgiving, is_to_show

# An event is a plain dict, so that it can cross process and cluster borders:
# {"kind": "line", "text": …}, {"kind": "progress", "step": …, "max_steps": …, …} or, as data are
# prepared, {"kind": "reading", "what": …, "number": …, "unit": "pairs" or "MiB", "ended": …}.
Event = dict[str, Any]
Emit = Callable[[Event], None]
Item = TypeVar("Item")
_READING_SECONDS = 0.5
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Reporter:
    """Sends events; workers other than the first hold one that drops them."""

    emit: Emit

    def line(self, text: str) -> None:
        """A line for the user."""
        self.emit({"kind": "line", "text": masked(text)})

    def begins(self, resumed_at: int, skipped_steps: int) -> None:
        """Training begins: after the step of a checkpoint, or 0; so many were skipped before."""
        text = "starting from scratch"
        if resumed_at:
            text = f"resuming from the checkpoint of step {resumed_at}"
        began = {"resumed_at": resumed_at, "skipped_steps": skipped_steps}
        self.emit({"kind": "line", "text": text, **began})

    def progress(self, **values: Any) -> None:
        """Where training stands: step, max_steps, loss, tokens_per_second, eta_seconds, and of
        each of the ``workers`` what its steps took: `training.workers.WorkersSpent.as_event`.
        """
        self.emit({"kind": "progress", **values})


def silent_reporter() -> Reporter:
    """Drops everything."""
    return Reporter(lambda event: None)


@contextmanager
def shown_by(
    on_event: Callable[[Event], None] | None, stream: IO[str] | None
) -> Iterator[Callable[[Event], None]]:
    """What takes the events of a ``with`` block: the caller's function, or where there is none a
    `Screen` on ``stream``.
    """
    if on_event is not None:
        yield on_event
        return
    screen = Screen(stream)
    try:
        yield screen.show
    finally:
        screen.close()


class Watch(Protocol):
    """Passes on what is read or made, and shows for what, and how many ``unit`` there were."""

    def __call__(self, what: str, items: Iterable[Item], unit: str = "pairs") -> Iterable[Item]: ...


def unwatched(what: str, items: Iterable[Item], unit: str = "pairs") -> Iterable[Item]:
    """A `Watch` that shows nothing."""
    del what, unit
    return items


def watched_by(show: Callable[[Event], None]) -> Watch:
    """A `Watch` that shows events, twice a second at most and one as each ends."""
    # One time for all that is watched: small files by themselves would show nothing.
    next_time = time.monotonic() + _READING_SECONDS

    def watch(what: str, items: Iterable[Item], unit: str = "pairs") -> Iterator[Item]:
        nonlocal next_time
        event, number = {"kind": "reading", "what": what, "unit": unit}, 0
        for number, item in enumerate(items, start=1):
            if time.monotonic() >= next_time:
                show({**event, "number": number, "ended": False})
                next_time = time.monotonic() + _READING_SECONDS
            yield item
        show({**event, "number": number, "ended": True})

    return watch


class Screen:
    """Shows events: a bar on a terminal and in a notebook, plain lines elsewhere.

    Nobody need look (``train … | head``, a terminal that has closed, a full disk that it goes to,
    a script without standard output): the run goes on without.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = Forgiving(stream)
        self._bar: tqdm[Any] | None = None
        # A notebook's stream is no terminal, but a line there can be written over as well.
        self._is_terminal = self._stream.isatty() or _is_of_notebook(stream)
        self._last_line = -math.inf
        self._last_reading = time.monotonic()
        self._reading_is_over = False

    def show(self, event: Event) -> None:
        """Show one event."""
        if not is_to_show():
            return
        if self._reading_is_over and event["kind"] != "reading":
            self.close()
        if event["kind"] == "line":
            if self._bar is not None:
                self._bar.write(event["text"], file=self._stream)
            else:
                self._line(event["text"])
        elif event["kind"] == "progress":
            self._show_progress(event)
        elif event["kind"] == "reading":
            self._show_reading(event)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._reading_is_over = False

    def _show_progress(self, event: Event) -> None:
        step, max_steps = event["step"], event["max_steps"]
        if self._is_terminal:
            if self._bar is None:
                self._bar = tqdm(
                    total=max_steps, initial=step, file=self._stream, unit="step",
                    bar_format="{percentage:3.0f}%|{bar}| {n}/{total}{postfix}",
                )  # fmt: skip
            self._bar.n = step
            self._bar.set_postfix_str(
                f"loss {event['loss']:.3f}, {event['tokens_per_second']:,.0f} tokens/s, "
                f"ETA {duration(event['eta_seconds'])}"
            )
            return
        # At most a line every ten seconds, and the last one.
        now = time.monotonic()
        if now - self._last_line >= 10 or step == max_steps:
            self._last_line = now
            self._line(
                f"step {step}/{max_steps}  loss {event['loss']:.3f}  "
                f"{event['tokens_per_second']:,.0f} tokens/s  ETA {duration(event['eta_seconds'])}"
            )

    def _show_reading(self, event: Event) -> None:
        so_far = f"{event['what']}: {event['number']:,} {event['unit']}"
        if not self._is_terminal:
            # A line a minute, and none of what has ended: other lines tell that.
            now = time.monotonic()
            if now - self._last_reading >= 60 and not event["ended"]:
                self._last_reading = now
                self._line(so_far)
        elif event["ended"]:
            # The bar stays until something else is shown: of small files another begins at once.
            self._reading_is_over = self._bar is not None
        else:
            self._reading_is_over = False
            if self._bar is None:
                self._bar = tqdm(
                    desc=so_far, file=self._stream, leave=False, bar_format="{desc}, {elapsed}"
                )
            self._bar.set_description_str(so_far)

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def _is_of_notebook(stream: object) -> bool:
    return type(stream).__module__.startswith("ipykernel.")


def printable(text: str) -> str:
    """Text of a corpus as it may go to a terminal, which takes some control characters as commands:
    they are escaped as in Python's ``repr``, as halves of letters are, which no file takes. Ends of
    lines too: it stays one line.
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def duration(seconds: float) -> str:
    """Like 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
