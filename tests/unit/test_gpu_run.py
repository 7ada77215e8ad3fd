"""On what the GPU tests run, and the command that runs them and counts how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dist_embed.errors import UserError
from tests.gpu.device import chosen
from tests.unit.run_apart import run_apart

pytestmark = pytest.mark.timeout(400)  # the first test waits for all programs, one after the other
NOTHING = "no test passed: that is a failure"
TESTS = {
    "passes": "import os\ndef test(): assert os.environ['DIST_EMBED_TEST_DEVICE'] == 'cpu'",
    "skips": "import pytest\n@pytest.mark.skip(reason='no room')\ndef test(): pass",
    "skips_in_call": "import pytest\ndef test(): pytest.skip('no room')",
    "fails": "def test(): assert 0",
    "fails_in_setup": "import pytest\n@pytest.fixture\ndef it(): assert 0\ndef test(it): pass",
    "cannot_be_read": "import nothing_of_this_name",
}


CASES = {
    "failures": ["passes", "fails", "fails_in_setup"],
    "one that cannot be read": ["passes", "cannot_be_read"],
    "nothing passes": ["skips", "skips_in_call"],
    "skips": ["passes", "skips", "skips_in_call"],
}
RUN = """
import os, runpy, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # importing plugins takes longer than all else
sys.argv = {arguments!r}
runpy.run_module("tests.gpu.run", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the last case writes."""
    return tmp_path_factory.mktemp("figures") / "figures.json"


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory, figures: Path
) -> dict[str, tuple[int, list[str]]]:
    """Of each case the exit code and the lines."""
    programs = []
    for case, names in CASES.items():
        folder = tmp_path_factory.mktemp("tests")
        for name in names:
            (folder / f"test_{name}.py").write_text(TESTS[name])
        more = ["--json", str(figures)] if case == "skips" else []
        arguments = ["run", "--device", "cpu", "-qq", "--no-summary", *more, str(folder)]
        programs.append(RUN.format(arguments=arguments))
    done = run_apart("import pytest", programs, tmp_path_factory.mktemp("said"))
    return {
        case: (one.returncode, one.stdout.splitlines())
        for case, one in zip(CASES, done, strict=True)
    }


@pytest.mark.parametrize(
    ("case", "code", "last"),
    [
        ("failures", 1, ["1 passed, 2 failed, 0 skipped"]),
        ("one that cannot be read", 2, [NOTHING, "0 passed, 1 failed, 0 skipped"]),
        ("nothing passes", 1, [NOTHING, "0 passed, 0 failed, 2 skipped"]),
    ],
)
def test_what_failed_is_named_and_nothing_passed_is_a_failure(
    ended: dict[str, tuple[int, list[str]]], case: str, code: int, last: list[str]
) -> None:
    found, lines = ended[case]
    assert found == code
    assert lines[-len(last) :] == last
    named = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    failed = {Path(name.partition("::")[0]).stem for name in named}
    wrong = [name for name in CASES[case] if name.startswith(("fails", "cannot"))]
    assert failed == {f"test_{name}" for name in wrong}


def test_ends_are_counted_in_a_file_too(
    ended: dict[str, tuple[int, list[str]]], figures: Path
) -> None:
    code, lines = ended["skips"]
    assert code == 0
    assert lines[-2:] == ["skipped 2: no room", "1 passed, 0 failed, 2 skipped"]
    assert json.loads(figures.read_text())["figures"] == {
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
