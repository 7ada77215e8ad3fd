"""Scripts without ``if __name__ == "__main__"`` whose processes must not run them again."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType

import pytest

from dist_embed.parallel.main_module import without_main_module

ROOT = Path(__file__).parents[2]
SCRIPT = """\
from dist_embed.data.processes import processes
print("script")
with processes(1) as pool:
    print(*pool.map(len, [("abc",)]))
"""


@pytest.mark.parametrize("given", ["file", "standard input", "-c"])
def test_processes_of_a_preparation_do_not_run_a_script_again(given: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = {"file": [str(script)], "standard input": ["-"], "-c": ["-c", SCRIPT]}[given]
    done = subprocess.run(
        [sys.executable, *words], input=SCRIPT, cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "script\n3\n"), done.stderr


def test_processes_of_a_preparation_import_what_their_caller_does(tmp_path: Path) -> None:
    """Nothing of the working folder, whatever it is called there; but a module of the script's."""
    names = ("socket", "queue", "random", "numpy", "struct", "signal", "tokenizers", "dist_embed",
             "multiprocessing")  # fmt: skip
    for name in names:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the working folder')\n")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    (script.parent / "mine.py").write_text("def double(text): return 2 * text\n")
    script.write_text(SCRIPT.replace("len,", "__import__('mine').double,"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "script\nabcabc\n", "")


def test_a_main_module_is_imported_again_outside_of_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of others' processes, whose functions may be defined there."""
    main = {"init_main_from_name", "init_main_from_path"}
    script = ModuleType("__main__")
    script.__file__ = "script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert spawn.get_preparation_data("x").keys() & main
    with without_main_module():
        told = spawn.get_preparation_data("x")
        assert not told.keys() & main
        assert (told["name"], "sys_path" in told) == ("x", True)
        with ThreadPoolExecutor(1) as another:  # whose process is its own affair
            assert another.submit(spawn.get_preparation_data, "x").result().keys() & main
        with without_main_module():
            pass
        assert not spawn.get_preparation_data("x").keys() & main
    assert spawn.get_preparation_data("x").keys() & main
