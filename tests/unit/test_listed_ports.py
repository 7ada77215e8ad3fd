"""What docs/ports.md lists is what listens; machines that talk to each other are looked at in
tests/integration/test_two_machines.py.
"""

from __future__ import annotations

import os
import subprocess

import psutil
import pytest
import ray.util
import torch.distributed as dist

from dist_embed.bench.ray_nodes import free_ports
from dist_embed.cluster import ray_group
from dist_embed.jobs import slurm
from tests.listed_ports import (
    GLOO,
    OF_OTHERS,
    TORCHRUN,
    UNDER_RAY,
    listed,
    port_under_slurm,
    under_slurm,
)

EVERYWHERE = {"0.0.0.0", "::"}


def listening() -> set[tuple[str, int]]:
    """Addresses and ports of this process."""
    found = psutil.Process().net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def test_the_page_lists_what_is_looked_at() -> None:
    """Here and on two machines."""
    assert set(listed()) == {GLOO, UNDER_RAY, under_slurm(), TORCHRUN, *OF_OTHERS}


def test_under_ray_the_store_is_on_its_node_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed()[UNDER_RAY] == "on its node's address"
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    before = listening()
    _, port = ray_group._host()
    assert listening() - before == {("127.0.0.2", port)}
    ray_group._hosted.clear()


@pytest.mark.parametrize("job", [1, 11_999, 12_000, 4_000_123])
def test_under_slurm_the_store_s_port_is_that_of_the_page(job: int) -> None:
    (line,) = [one for one in slurm._BODY.splitlines() if one.startswith("MASTER_PORT=")]
    done = subprocess.run(
        ["bash", "-c", f'SLURM_JOB_ID={job}\n{line}\necho "$MASTER_PORT"'], capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    assert int(done.stdout) == port_under_slurm(job)


def test_under_slurm_the_store_is_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes it, of the environment."""
    assert listed()[under_slurm()] == "on all addresses of its machine"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in slurm._BODY  # else it would be somebody else's
    (port,) = free_ports(1)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    for name, value in place.items():
        monkeypatch.setitem(os.environ, name, value)
    before = listening()
    store, _, _ = next(dist.rendezvous("env://"))
    found = listening() - before
    assert {at for _, at in found} == {port}
    assert {address for address, _ in found} <= EVERYWHERE
    del store
