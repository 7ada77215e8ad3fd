"""Items that a thread makes before they are asked for, within a bound."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from dist_embed.parallel.threads import WaitedThread

T = TypeVar("T")

# Between looks whether the thread lives, which else says how it ends.
_LOOK_SECONDS = 5.0


class ReadAhead(Generic[T]):
    """Iterator over ``items``, which a thread asks for ``ahead`` of their use.

    It begins with the next one when one is handed out: so at most ``ahead`` items are ready or
    being made, beside those that are in use.

    Args:
        items: an iterator that the thread alone uses; if it has a ``close``, it is closed there.
        ahead: at least 1.
        name: of the thread.

    What is raised there is raised to whoever asks for the next item, each time again. `close` ends
    the thread.

    A daemon thread that is computing while the interpreter ends may abort the process: before it
    ends, it waits up to 30 s for an item that is being made.
    """

    def __init__(self, items: Iterator[T], *, ahead: int = 1, name: str = "read ahead") -> None:
        self._ready: deque[T] = deque()
        self._allowed = ahead  # items that may be begun
        self._end: BaseException | None = None  # what there is after those that are ready
        self._closed = False
        self._changed = threading.Condition()
        self._thread = WaitedThread(target=self._fill, args=(items,), name=name, daemon=True)
        atexit.register(self.close, 30)
        self._thread.start()

    def _fill(self, items: Iterator[T]) -> None:
        try:
            while self._may_begin():
                item = next(items)
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                del item  # it is in use, or dropped, while the next one is being made
        except BaseException as exc:  # raised where the items are used
            self._end = exc
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            with self._changed:
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._allowed > 0)
            self._allowed -= 1
            return not self._closed

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not self._ready:
                if self._closed:
                    raise RuntimeError("what is read ahead has been closed")
                if self._end is not None:
                    raise self._end
                if not self._thread.is_alive():
                    raise RuntimeError(f"the thread {self._thread.name!r} has ended without a word")
                self._changed.wait(_LOOK_SECONDS)
            self._allowed += 1
            self._changed.notify_all()
            return self._ready.popleft()

    def close(self, seconds: float = 5) -> None:
        """End the thread; wait so long for it at most. Whoever waits for an item is told."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            atexit.unregister(self.close)
