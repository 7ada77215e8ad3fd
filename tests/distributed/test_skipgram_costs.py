"""What the example costs beside gensim is measured as its page says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gensim")
ROOT = Path(__file__).parents[2]
GIB = 2**30


def rows_of(*arguments: str) -> list[list[str]]:
    """The cells of the table that is printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/examples/skipgram_costs.py"), *arguments],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_both_sides_count_the_words_that_have_a_vector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    costs, skipgram = map(importlib.import_module, ("skipgram_costs", "skipgram"))
    monkeypatch.setattr(skipgram, "batches", skipgram.batches)  # which the measurement replaces
    text = tmp_path / "text.txt"
    # Subsampling leaves out most of "the"; a sixth of the text is words too rare for a vector.
    text.write_text("".join(f"the cat saw the dog once{i // 2}\n" for i in range(60)))
    settings = {name.replace("-", "_"): value for name, value in skipgram.DEFAULTS.items()}
    settings |= {"text": str(text), "out": str(tmp_path), "steps": 0, "epochs": 1}
    args = Namespace(**settings | {"width": 8, "workers": 1})
    memory = SimpleNamespace(most=lambda: 0)
    assert costs.measured_gensim(args, memory)["words"] == 300
    assert costs.measured_ours(args, memory)["words"] == 300


@pytest.mark.heavy
def test_memory_is_that_of_a_worker_s_share_and_of_the_copy() -> None:
    rows = rows_of("memory", "--rows", "400000", "--width", "128", "--steps", "2")
    held = {(way, count, saving): float(gib) for way, count, saving, _, gib in rows}
    one = held["skipgram.py", "1", "in_place"]
    two = held["skipgram.py", "2", "in_place"]
    copied = held["skipgram.py", "2", "behind"]
    share = 2 * 400_000 * 129 * 4 / 2 / GIB  # of two workers
    assert one - two == pytest.approx(share, rel=0.3)
    assert copied - two == pytest.approx(share, rel=0.3)
    assert held["gensim", "1", ""] > 2 * 400_000 * 128 * 4 / GIB


@pytest.mark.heavy
def test_speed_is_measured_of_all_four() -> None:
    rows = rows_of(
        "speed", "--rounds", "1", "--nouns", "50", "--sentences", "2000", "--epochs", "1",
        "--width", "16",
    )  # fmt: skip
    assert [row[:2] for row in rows] == [
        ["gensim", "1"], ["gensim", "2"], ["skipgram.py", "1"], ["skipgram.py", "2"]
    ]  # fmt: skip
    assert all(float(row[2].replace(",", "")) > 0 for row in rows)
