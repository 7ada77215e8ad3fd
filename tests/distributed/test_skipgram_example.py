"""The example of a loop of one's own: it learns, and goes on where it was stopped, on any number of
workers.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_embed.checkpoint.catalogue import current_names, list_steps, open_checkpoints
from dist_embed.parallel.group import Group
from tests.distributed.pool import WorkerPool

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/skipgram.py"
TOPICS = 4
SIZES = [
    "--width", "16", "--window", "3", "--batch", "512", "--negatives", "20", "--subsample", "1",
    "--rate", "0.3", "--save-every", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sentences of words of one topic each: word w is of topic w mod 4."""
    draw = np.random.default_rng(1)
    lines = [
        " ".join(f"w{TOPICS * word + topic}" for word in draw.integers(0, 6, 9))
        for topic in draw.integers(0, TOPICS, 300)
    ]
    path = tmp_path_factory.mktemp("skipgram") / "text.txt"
    path.write_text("\n".join(lines))
    return str(path)


def vectors_of(out: Path) -> dict[str, NDArray[np.float64]]:
    head, *lines = (out / "vectors.txt").read_text().splitlines()
    assert head == f"{6 * TOPICS} 16"
    rows = [line.split() for line in lines]
    return {word: np.array(values, dtype=np.float64) for word, *values in rows}


def trained(group: Group, text: str, out: str, epochs: int) -> None:
    del group  # it is joined by what torch.distributed knows
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(["--text", text, "--out", out, "--epochs", str(epochs), *SIZES])


def test_it_learns_and_goes_on_on_other_workers(
    workers: WorkerPool, text: str, tmp_path: Path
) -> None:
    workers.run(1, trained, text, str(tmp_path / "one"), 4)
    # An epoch has 2,700 words: 6 steps.
    assert list_steps(str(tmp_path / "one")) == [18, 21, 24]
    workers.run(2, trained, text, str(tmp_path / "two"), 1)
    assert list_steps(str(tmp_path / "two")) == [3, 6]
    store = open_checkpoints(str(tmp_path / "two"))
    Path(store.uri, current_names(store)[-1].path).unlink()  # as if stopped within the epoch
    workers.run(3, trained, text, str(tmp_path / "two"), 4)
    whole, resumed = vectors_of(tmp_path / "one"), vectors_of(tmp_path / "two")
    assert whole.keys() == resumed.keys()
    for word, vector in whole.items():
        np.testing.assert_allclose(resumed[word], vector, rtol=1e-3, atol=1e-4)
    unit = {word: vector / np.linalg.norm(vector) for word, vector in whole.items()}
    same, other = [], []
    for a, b in combinations(unit, 2):
        is_same = int(a[1:]) % TOPICS == int(b[1:]) % TOPICS
        (same if is_same else other).append(unit[a] @ unit[b])
    assert min(same) > max(other)


@pytest.mark.heavy
def test_it_runs_under_torchrun_and_by_itself(text: str, tmp_path: Path) -> None:
    arguments = [str(EXAMPLE), "--text", text, "--epochs", "1", *SIZES]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in {"torchrun": torchrun, "alone": []}.items():
        done = subprocess.run(
            [sys.executable, *command, *arguments, "--out", str(tmp_path / name)],
            capture_output=True, text=True, timeout=100, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "step 6: checkpoint saved" in done.stdout
    expected, found = vectors_of(tmp_path / "alone"), vectors_of(tmp_path / "torchrun")
    for word, vector in expected.items():
        np.testing.assert_allclose(found[word], vector, rtol=1e-3, atol=1e-4)
