"""Processes that do not run their caller's script again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def without_main_module() -> Iterator[None]:
    """Processes that `multiprocessing` starts within the block, unless by a plain fork, do not
    import this one's main module.

    They would do so to find functions that are defined there. What we start never is; and a script
    that trains without ``if __name__ == "__main__"`` would train again in each of its workers, one
    from standard input has no file that could be imported. `multiprocessing` has no setting for it
    (Python 3.10 to 3.14, spawn.py:get_preparation_data).
    """
    ours = threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        told: dict[str, Any] = of_python(name)
        if threading.get_ident() != ours:  # another thread's process
            return told
        return {key: value for key, value in told.items() if not key.startswith("init_main_from_")}

    module: Any = spawn
    with _ONE_AT_A_TIME:
        of_python = module.get_preparation_data
        module.get_preparation_data = without_main
        try:
            yield
        finally:
            module.get_preparation_data = of_python
