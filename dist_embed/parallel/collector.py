"""Making what is large and stays, as by imports, without Python's cyclic garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off(*, freeze: bool = False) -> Iterator[None]:
    """Python's cyclic garbage collector does not run in a ``with`` block, which is to import, or to
    make much else that stays. Decorates functions too.

    What an import creates stays, but the collector walks it again and again: a third to a half of
    the time that PyTorch and TorchRec take. Afterwards the collector is on again if it was.

    Args:
        freeze: what there is by then is never walked again, nor set free where it refers to itself:
            for processes of our own, not for somebody's who imports us.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        if freeze:
            gc.freeze()
    finally:
        if was_on:
            gc.enable()
