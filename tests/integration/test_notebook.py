"""`dist_embed` in a Jupyter kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What kernels inherit, with a folder for temporary files whose name is short: a socket's path
    has 107 bytes at most.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="de-", dir="/tmp") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        yield


def texts(cell: Any, stream: str = "stdout") -> str:
    return "".join(out.text for out in cell.outputs if out.get("name") == stream)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    """From the first cell to the last, in an empty folder, that of training twice; it learns what
    its page says.
    """
    notebook = jupytext.read(ROOT / "docs/examples/translate_notebook.py")
    (training,) = (cell for cell in notebook.cells if "dist_embed.train(" in cell.source)
    again = new_code_cell(training.source)
    notebook.cells.insert(notebook.cells.index(training) + 1, again)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = texts(training)
    # A bar that is written over, not a line for each of its states.
    assert re.search(r"\r100%\|█+\| 200/200, loss ", said)
    assert not re.search(r"^step \d+/200 ", said, re.MULTILINE)
    assert re.search(r"^200 steps, [\d,]+ target tokens/s$", said, re.MULTILINE)
    assert re.search(r"^200 steps$", texts(again), re.MULTILINE)
    pictures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    (neighbors,) = (cell for cell in cells if ".neighbors(" in cell.source)
    near = eval(neighbors.outputs[-1].data["text/plain"])
    assert [word[-3:] for word, _ in near].count("asi") >= 3
    found = re.fullmatch(r"BLEU (\d+\.\d) over 100 sentences\n", texts(cells[-1]))
    assert found
    assert float(found[1]) > 20


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_the_command_that_makes_the_page_writes_a_bar_once(tmp_path: Path) -> None:
    folder = tmp_path / "docs/examples"
    folder.mkdir(parents=True)
    notebook = ROOT / "docs/examples/translate_notebook.py"
    said = r'for step in "12": print(f"\rbar {step}", end="", flush=True); time.sleep(1)'
    (folder / notebook.name).write_text(f"# %%\nimport time\n{said}\nprint()\n")
    (command,) = re.findall(r"^#     (jupytext .*\n(?:#     .*\n)+)", notebook.read_text(), re.M)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("\n#", "\n")], cwd=tmp_path,
        capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not recognized" not in done.stderr
    page = folder.joinpath("translate_notebook.md").read_bytes().decode()
    assert page.rsplit("```", 1)[1].split() == ["bar", "2"]
    assert "\r" not in page


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_the_stop_button_ends_a_training_and_leaves_no_process_behind(
    kernel: tuple[KernelManager, BlockingKernelClient], config: str
) -> None:
    manager, client = kernel
    asked = client.execute(
        "import dist_embed\n"
        f"config = dist_embed.load_config({config!r}, ['train.max_steps=100000',\n"
        "    'train.evaluate_every=100000', 'train.log_every=2'])\n"
        "dist_embed.train(config)\n"
    )
    said, limit = "", time.monotonic() + 330
    while "/100000, loss " not in said:
        assert time.monotonic() < limit, said
        message = client.get_iopub_msg(timeout=330)
        assert message["msg_type"] != "error", message["content"]
        said += message["content"].get("text", "")
    process = psutil.Process(manager.provisioner.pid)
    children = process.children(recursive=True)
    workers = [child for child in children if child.ppid() != process.pid]  # of the fork server
    assert len(workers) == 2
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=200))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["ename"] == "TrainingStopped"
    assert re.match(r"stopped as asked after step \d+; ", reply["content"]["evalue"])
    _, left = psutil.wait_procs(workers, timeout=0)
    assert left == []
    # The kernel goes on, and a Ctrl-C is again what it was.
    done = client.execute_interactive(
        "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler",
        timeout=60, output_hook=lambda message: None,
    )  # fmt: skip
    assert done["content"]["status"] == "ok"
    # Temporary files are not looked at: a kernel with a fork server does not end by itself, and one
    # that its manager ends by SIGTERM leaves the server's folder (ipykernel 7.4, Python 3.11).
    manager.shutdown_kernel()
    _, left = psutil.wait_procs([process, *children], timeout=60)
    assert left == []
