"""Workers of one machine, and their launcher, are reached by nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

from dist_embed.cluster.local import launch_local
from dist_embed.observe.events import Emit
from dist_embed.parallel.collectives import sum_over_workers
from dist_embed.parallel.group import joined_group


def listening(process: psutil.Process) -> set[str]:
    found = process.net_connections("inet")
    return {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}


def tell(launcher: int, emit: Emit) -> None:
    with joined_group("cpu", 60.0) as group:
        sum_over_workers(torch.zeros(1), group)
        here = listening(psutil.Process()), listening(psutil.Process(launcher))
        # Without the latter the former would depend on the name of this machine.
        emit({"kind": "told", "value": (*here, os.environ["GLOO_SOCKET_IFNAME"])})
        sum_over_workers(torch.zeros(1), group)


def test_workers_and_their_launcher_listen_on_loopback(tmp_path: Path) -> None:
    told = []
    launch_local(
        tell, (os.getpid(),), num_workers=2, on_event=told.append, log_folder=str(tmp_path)
    )  # fmt: skip
    assert [event["value"] for event in told] == 2 * [({"127.0.0.1"}, {"127.0.0.1"}, "lo")]
