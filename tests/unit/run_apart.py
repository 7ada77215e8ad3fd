"""Programs in processes of their own that need not each import what takes long."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, Popen, TimeoutExpired

LIMIT_SECONDS = 300.0
ROOT = Path(__file__).parents[2]
_FORKS = """
import os, sys
exec(sys.argv[1])
for folder in sys.argv[2:]:
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
        with open(f"{folder}/program") as file:
            text = file.read()
        exec(text, {"__name__": "__main__"})
        sys.exit()
    with open(f"{folder}/code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def run_apart(imports: str, programs: Sequence[str], folder: Path) -> list[CompletedProcess[str]]:
    """Run each program in a copy of one Python, in the project's folder, and wait for it.

    All have `LIMIT_SECONDS` together: then they are ended, and an error tells what the last one
    has said.

    Args:
        imports: statements that the one Python runs before it is copied.
        programs: what each copy runs.
        folder: for what they say; empty.
    """
    folders = [folder / str(number) for number in range(len(programs))]
    for place, program in zip(folders, programs, strict=True):
        place.mkdir()
        (place / "program").write_text(program)
    command = [sys.executable, "-c", _FORKS, imports, *map(str, folders)]
    # In a session of their own, so that none outlives the one Python.
    process = Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(LIMIT_SECONDS)
    except TimeoutExpired:
        last = [place for place in folders if (place / "out").exists()][-1:]
        said = [f"{place / name}:\n{(place / name).read_text()[-4000:]}"
                for place in last for name in ("out", "err")]  # fmt: skip
        raise AssertionError("\n".join([f"not done in {LIMIT_SECONDS} s", *said])) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert code == 0, f"{imports!r}: ended with code {code}"
    return [
        CompletedProcess(
            program, int((place / "code").read_text()), (place / "out").read_text(),
            (place / "err").read_text(),
        )
        for place, program in zip(folders, programs, strict=True)
    ]  # fmt: skip
