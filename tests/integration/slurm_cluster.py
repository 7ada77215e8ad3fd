"""A Slurm of one machine, for tests: slurmctld, slurmd and munged as children, on loopback only."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_embed.bench.ray_nodes import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")


def missing() -> list[str]:
    """The programs that are not installed: Debian's slurm-wlm and munge have them."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"/usr/sbin:{os.environ['PATH']}"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Up for the length of a ``with`` block; gives the environment that reaches it.

    Args:
        folder: of a short path, for Slurm's sockets.
    """
    control, node = free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    lines = {
        "ClusterName": "one",
        "SlurmctldHost": "localhost(127.0.0.1)",
        "SlurmUser": "root",
        "AuthInfo": f"socket={folder}/munge.socket",
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmctldPort": control,
        "SlurmdPort": node,
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SelectType": "select/cons_tres",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "batch_sched_delay=0",  # it looks for new jobs every third second
        "ReturnToService": 2,
        "KillWait": 8,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    text += "NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN\n"
    # Jobs of the second one take the nodes of those of the first, after a notice of a minute.
    text += "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60\n"
    text += "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF\n"
    conf = folder / "slurm.conf"
    conf.write_text(text)
    environment = {**os.environ, "SLURM_CONF": str(conf), "PATH": _path()}
    commands = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/munge.socket",
            f"--key-file={key}",
            f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log",
            f"--seed-file={folder}/munge.seed",
        ],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-N", "localhost", "-f", str(conf)],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "wb") as output:
                started.append(
                    subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=output,
                        env=environment,
                        start_new_session=True,
                    )
                )
            if command[0] == "munged":
                deadline = time.monotonic() + 20
                while not (folder / "munge.socket").exists():
                    assert started[-1].poll() is None, (folder / "munged.out").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        deadline = time.monotonic() + 60
        while True:
            state = subprocess.run(
                ["sinfo", "-h", "-p", "main", "-o", "%T"],
                capture_output=True,
                text=True,
                env=environment,
            ).stdout.strip()
            if state == "idle":
                break
            for process, command in zip(started, commands, strict=True):
                assert process.poll() is None, (folder / f"{command[0]}.out").read_text()
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(10)
