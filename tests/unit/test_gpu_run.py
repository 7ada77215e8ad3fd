"""The command that runs the GPU tests and counts how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "passes": "import os\ndef test(): assert os.environ['DIST_EMBED_TEST_DEVICE'] == 'cpu'",
    "skips": "import pytest\n@pytest.mark.skip(reason='no room')\ndef test(): pass",
    "skips_in_call": "import pytest\ndef test(): pytest.skip('no room')",
    "fails": "def test(): assert 0",
    "fails_in_setup": "import pytest\n@pytest.fixture\ndef it(): assert 0\ndef test(it): pass",
    "cannot_be_read": "import nothing_of_this_name",
}


@pytest.mark.parametrize(
    ("names", "code", "last"),
    [
        (["passes", "skips", "skips_in_call"], 0, "1 passed, 0 failed, 2 skipped"),
        (["passes", "fails", "fails_in_setup"], 1, "1 passed, 2 failed, 0 skipped"),
        (["passes", "cannot_be_read"], 2, "0 passed, 1 failed, 0 skipped"),
        (["skips", "skips_in_call"], 1, "0 passed, 0 failed, 2 skipped"),
    ],
)
def test_ends_are_counted_and_nothing_passed_is_a_failure(
    tmp_path: Path, names: list[str], code: int, last: str
) -> None:
    for name in names:
        (tmp_path / f"test_{name}.py").write_text(TESTS[name])
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.run", "--device", "cpu", "--json", str(figures), "-q",
         "-q", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == last
    assert ("no test passed: that is a failure" in lines) == last.startswith("0 passed")
    assert ("skipped 2: no room" in lines) == last.endswith("2 skipped")
    found = json.loads(figures.read_text())["figures"]
    assert f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped" == last
    assert len(found["failures"]) == found["failed"]
    assert sum(found["skips"].values()) == found["skipped"]
