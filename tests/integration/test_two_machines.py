"""Workers of two machines whose own names are loopback to themselves, as Debian sets them up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Command
from tests.integration.machines import machines
from tests.integration.run_metrics import metrics

pytestmark = pytest.mark.heavy


def test_torchrun_trains_on_two_machines(config: str, dist_embed: Command, tmp_path: Path) -> None:
    dist_embed("prepare", config)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-endpoint=first:29500",
        "-m", "dist_embed.cli.main", "train", config,
    ]  # fmt: skip
    with machines(tmp_path, "first", "second") as both:
        processes = [
            machine.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for machine in both
        ]
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    assert len(metrics(tmp_path / "run")) == 8
