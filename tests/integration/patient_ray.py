"""Ray on a machine that has little time for it: its command, and what this process starts of it.

Ray 2.60 waits 15 s for the ports that are chosen by what it starts beside a node, and 30 s for the
node, whatever is asked of it; then the node ends, or comes after all and is in the way.
"""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from ray._private import services

from dist_embed.bench.ray_nodes import free_ports
from tests.integration.ray_cluster import FOR_BUSY_MACHINES

NODE_SECONDS = 300.0


def agent_ports() -> dict[str, int]:
    """Ports of what is started beside a node: where they are given, Ray does not wait for them
    (node_manager.cc, WaitForDashboardAgentPorts), but for one that it forgets to hand on.
    """
    names = ("metrics_agent", "metrics_export", "dashboard_agent_listen", "runtime_env_agent")
    return {f"{name}_port": port for name, port in zip(names, free_ports(4), strict=True)}


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone."""
    start, get_node = services.start_ray_process, services.get_node

    def start_with_port(command: list[str], *arguments: Any, **options: Any) -> Any:
        port = re.search(r"--listen-port=([1-9]\d*)", " ".join(command))
        if port and command[0].endswith("raylet"):
            command = [*command, f"--dashboard_agent_listen_port={port[1]}"]
        return start(command, *arguments, **options)

    def wait_for_node(*node: str) -> Any:
        give_up_at = time.monotonic() + NODE_SECONDS
        while True:
            try:
                return get_node(*node)
            except RuntimeError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.2)

    for name, value in FOR_BUSY_MACHINES.items():
        patch.setenv(name, value)
    patch.setattr(services, "start_ray_process", start_with_port)
    patch.setattr(services, "get_node", wait_for_node)


if __name__ == "__main__":
    from ray.scripts.scripts import main

    with pytest.MonkeyPatch.context() as for_good:
        be_patient(for_good)
        main()
