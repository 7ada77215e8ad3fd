"""`dist_embed` used from scripts, as whole processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.left_behind import Traces

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/library.md"
ASKED_TO_STOP = "asked to stop: the run ends after its step"


def test_the_page_s_examples_run_from_standard_input(config: str, tmp_path: Path) -> None:
    """Without ``if __name__ == "__main__"``, one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    training, _, _ = blocks[0].partition("quality = ")
    # Twice: the second time it finds nothing left to do.
    program = "\n".join([training, *blocks]).replace("configs/quickstart.yaml", config)
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=300,
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count(" 8 steps, ") + said.count("\n8 steps, ") == 1  # no worker ran it too
    assert said.count("\n8 steps\n") == 1
    assert re.search(r"^BLEU \d+\.\d over 20 sentences$", said, re.MULTILINE)
    assert "{'step': [4, 8], 'validation_loss': [" in said
    assert "CheckpointInfo(step=8, " in said
    assert "runs/library holds a run with another configuration:" in said
    assert (tmp_path / "runs/library/source.parquet").exists()
    assert said.endswith(
        "Give run.uri another folder, or go on from its newest checkpoint with the new values: "
        "--force, in a script force=True\n"
    )


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="de-", dir="/tmp") as made:
        yield Path(made)


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_ctrl_c_in_a_script_leaves_no_process_behind(
    again: bool, config: str, tmp_path: Path, temporary: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import dist_embed\n"
        f"config = dist_embed.load_config({config!r}, ['train.max_steps=100000',\n"
        "    'train.evaluate_every=100000', 'train.log_every=2', 'cluster.num_workers=1'])\n"
        "def show(event):\n"
        "    print(event.get('text', event['kind']), flush=True)\n"
        "try:\n"
        "    dist_embed.train(config, on_event=show)\n"
        "finally:\n"
        "    print('cleaned', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"TMPDIR": str(temporary)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    lines = iter(process.stdout.readline, "")
    for line in lines:
        if line == "progress\n":
            break
    else:
        raise AssertionError(process.communicate()[1])
    traces = Traces(process.pid, temporary)
    os.killpg(process.pid, signal.SIGINT)
    if again:
        time.sleep(0.6)
        os.killpg(process.pid, signal.SIGINT)
    said = [line.rstrip("\n") for line in lines]
    complaint = process.stderr.read()
    process.wait(60)
    assert said[-1] == "cleaned", complaint
    stopped = "dist_embed.training.results.TrainingStopped: stopped as asked after" in complaint
    if again and not stopped:  # the second one came while it was saving
        assert "KeyboardInterrupt" in complaint.splitlines(), complaint
    else:
        assert stopped, complaint
        assert any(line.startswith(ASKED_TO_STOP) for line in said)
    traces.check_gone()
