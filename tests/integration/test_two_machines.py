"""Workers of two machines whose own names are loopback to themselves, as Debian sets them up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Command
from tests.integration.machines import Machine, machines
from tests.integration.run_metrics import losses, metrics, until
from tests.listed_ports import GLOO, TORCHRUN, listed

pytestmark = pytest.mark.heavy

STEPS = 600  # so that some are left while one looks


def test_torchrun_trains_on_two_machines(config: str, dist_embed: Command, tmp_path: Path) -> None:
    dist_embed("prepare", config)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", "--rdzv-endpoint=first:29500",
        "-m", "dist_embed.cli.main", "train", config, f"train.max_steps={STEPS}",
        f"train.evaluate_every={STEPS}", f"checkpoint.every_steps={STEPS}",
    ]  # fmt: skip
    with machines(tmp_path, "first", "second") as both:
        processes = [
            machine.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for machine in both
        ]
        until(lambda: len(losses(tmp_path / "run")) >= 3)
        first, second = map(listening, both)
        assert [process.poll() for process in processes] == [None, None]
        for process in processes:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    assert len(metrics(tmp_path / "run")) == STEPS
    # As docs/ports.md lists them, and nothing else.
    page = listed()
    assert page[TORCHRUN] == "on all addresses of their machine"
    assert page[GLOO] == "on the interface by which the first worker is reached"
    everywhere = {port for address, port in first if address in ("0.0.0.0", "::")}
    assert 29500 in everywhere
    assert len(everywhere) == 2
    assert {address for address, port in first if port not in everywhere} == {both[0].address}
    assert {address for address, _ in second} == {both[1].address}


def listening(machine: Machine) -> set[tuple[str, int]]:
    """Addresses, beside loopback, and ports where TCP is heard there."""
    program = (
        "import json, psutil\n"
        "found = psutil.net_connections('tcp')\n"
        "print(json.dumps([one.laddr for one in found if one.status == psutil.CONN_LISTEN]))"
    )
    process = machine.start(sys.executable, "-c", program, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=60)
    heard = {(address.removeprefix("::ffff:"), port) for address, port in json.loads(said)}
    return {one for one in heard if not one[0].startswith("127.") and one[0] != "::1"}
