"""On what the GPU tests run, and the command that runs them and counts how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_embed.errors import UserError
from tests.gpu.device import chosen

ROOT = Path(__file__).parents[2]
NOTHING = "no test passed: that is a failure"
TESTS = {
    "passes": "import os\ndef test(): assert os.environ['DIST_EMBED_TEST_DEVICE'] == 'cpu'",
    "skips": "import pytest\n@pytest.mark.skip(reason='no room')\ndef test(): pass",
    "skips_in_call": "import pytest\ndef test(): pytest.skip('no room')",
    "fails": "def test(): assert 0",
    "fails_in_setup": "import pytest\n@pytest.fixture\ndef it(): assert 0\ndef test(it): pass",
    "cannot_be_read": "import nothing_of_this_name",
}


def run(folder: Path, names: list[str], *options: str) -> tuple[int, list[str]]:
    """Exit code and lines."""
    for name in names:
        (folder / f"test_{name}.py").write_text(TESTS[name])
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.run", "--device", "cpu", "-qq",
         "--no-summary", *options, str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("names", "code", "last"),
    [
        (["passes", "fails", "fails_in_setup"], 1, ["1 passed, 2 failed, 0 skipped"]),
        (["passes", "cannot_be_read"], 2, [NOTHING, "0 passed, 1 failed, 0 skipped"]),
        (["skips", "skips_in_call"], 1, [NOTHING, "0 passed, 0 failed, 2 skipped"]),
    ],
)
def test_what_failed_is_named_and_nothing_passed_is_a_failure(
    tmp_path: Path, names: list[str], code: int, last: list[str]
) -> None:
    found, lines = run(tmp_path, names)
    assert found == code
    assert lines[-len(last) :] == last
    named = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    failed = {Path(name.partition("::")[0]).stem for name in named}
    assert failed == {f"test_{name}" for name in names if name.startswith(("fails", "cannot"))}


def test_ends_are_counted_in_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    names = ["passes", "skips", "skips_in_call"]
    code, lines = run(tmp_path, names, "--json", str(file))
    assert code == 0
    assert lines[-2:] == ["skipped 2: no room", "1 passed, 0 failed, 2 skipped"]
    assert json.loads(file.read_text())["figures"] == {
        "passed": 1, "failed": 0, "skipped": 2, "failures": [], "skips": {"no room": 2},
    }  # fmt: skip


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert chosen("cpu") == "cpu"
    assert chosen("auto") == ("cuda" if has_gpu else "cpu")
    if has_gpu:
        assert chosen("cuda") == "cuda"
    else:
        with pytest.raises(UserError, match="finds no CUDA device"):
            chosen("cuda")
    with pytest.raises(ValueError, match="DIST_EMBED_TEST_DEVICE=gpu is not allowed"):
        chosen("gpu")
