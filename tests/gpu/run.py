"""Run the tests of this folder on a device that is named, and count how they end.

    python -m tests.gpu.run --device cuda --json FILE [pytest's arguments]

Nothing passed is a failure: pytest's own exit code is 0 where every test was skipped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


class Tally:
    """A plugin of pytest that counts how tests end, with several processes too.

    Attributes:
        ends: how many passed, failed (in what they set up, too, or by not being read at all) and
            were skipped.
        failed: their names.
        reasons: why tests were skipped, and how many for each reason.
    """

    def __init__(self) -> None:
        self.ends = Counter(passed=0, failed=0, skipped=0)
        self.failed: list[str] = []
        self.reasons: Counter[str] = Counter()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # Each of several processes reads all files.
        if report.outcome != "passed" and report.nodeid not in self.failed:
            self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test has three reports. Of one that passed, that of the call tells.
        if report.outcome != "passed" or report.when == "call":
            self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        self.ends[report.outcome] += 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid)
            # At once: who runs them may end them before pytest tells.
            print(f"\nFAILED {report.nodeid}", flush=True)
        elif report.outcome == "skipped":
            place: Any = report.longrepr  # file, line, reason
            self.reasons[place[2].removeprefix("Skipped: ")] += 1

    def lines(self) -> list[str]:
        """For the screen; what matters most last."""
        told = [f"skipped {count}: {reason}" for reason, count in self.reasons.most_common()]
        told += [f"FAILED {name}" for name in self.failed]
        if not self.ends["passed"]:
            told.append("no test passed: that is a failure")
        return [*told, ", ".join(f"{count} {end}" for end, count in self.ends.items())]

    def figures(self) -> dict[str, Any]:
        """For a file."""
        return {**self.ends, "failures": self.failed, "skips": dict(self.reasons)}


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.run", allow_abbrev=False)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", metavar="FILE", help="write how many passed, failed, skipped")
    known, others = parser.parse_known_args(arguments)
    os.environ["DIST_EMBED_TEST_DEVICE"] = known.device
    if not any(Path(other.partition("::")[0]).exists() for other in others):
        others.append(str(Path(__file__).parent))
    tally = Tally()
    code = int(pytest.main(others, plugins=[tally]))
    for line in tally.lines():
        print(line)
    if known.json:
        import torch

        from dist_embed.bench.report import write_json
        from dist_embed.parallel.device import device_name

        command = shlex.join(["python", "-m", "tests.gpu.run", *arguments])
        # Where a GPU was asked for and is not there, nothing has run.
        on_gpu = known.device != "cpu" and torch.cuda.is_available()
        name = device_name(torch.device("cuda" if on_gpu else "cpu"))
        write_json(known.json, command, name, tally.figures())
    return code or int(not tally.ends["passed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
