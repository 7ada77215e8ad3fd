"""What tests of disturbed runs compare losses by shows an update that is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_embed.bench.ray_nodes import free_ports
from tests.integration.conftest import tiny_config
from tests.integration.ray_training import LOSS_TOLERANCE, SAME_AT_ANY_LENGTH
from tests.integration.run_metrics import metrics

pytestmark = pytest.mark.heavy

STEPS, LOST = 60, 20
# A worker of its own, whose steps are as they are but for one, in which nothing is updated.
PROGRAM = """
import sys
from types import SimpleNamespace
from dist_embed.cli.main import main
from dist_embed.training import step as module

run = module.TrainStep.run

def without(self, step, *given, **more):
    module.math = SimpleNamespace(isfinite=lambda value: step != int(sys.argv[1]))
    return run(self, step, *given, **more)

module.TrainStep.run = without
sys.exit(main(sys.argv[2:]))
"""


def test_a_lost_update_is_beyond_the_tolerance(tmp_path: Path) -> None:
    found = []
    for lost in (0, LOST):
        (port,) = free_ports(1)
        alone = {
            "TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        run = tmp_path / f"without-{lost}"
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(lost), "train", tiny_config(tmp_path),
             *SAME_AT_ANY_LENGTH, f"data.uri={tmp_path / 'data'}", f"run.uri={run}",
             f"train.max_steps={STEPS}", "checkpoint.every_steps=1000"],
            env=os.environ | alone, timeout=300, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found.append(metrics(run))
    whole, without = found
    for step in range(1, LOST):
        assert without[step] == whole[step]
    for step in range(LOST + 1, STEPS + 1):
        assert abs(without[step] - whole[step]) > 2 * LOSS_TOLERANCE * whole[step], step
