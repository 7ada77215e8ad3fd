"""The two pods of a manifest as a head and a node of Ray on this machine: one of them is to end.

    python -m tests.integration.pods FOLDER head|worker

To be called where no other process is seen (`unshare --pid --net --mount-proc`): what a pod does
before it ends looks at all of them. Prints, as JSON, how the run's job stands after that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_embed.config.load import config_from_dict
from dist_embed.jobs.kubernetes import manifest
from tests.integration.conftest import TINY
from tests.integration.ray_cluster import FOR_BUSY_MACHINES

PORT, DASHBOARD = 6380, 8266
JOBS = ["--address", f"http://127.0.0.1:{DASHBOARD}"]
NODE_OF_WORKERS = """
import ray
ray.init(address={address!r}, logging_level="ERROR")
print(*[node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")])
"""
SECONDS = 360.0  # for each thing that is waited for


def until(what: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {SECONDS:.0f} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def job_of(folder: Path) -> dict[str, Any]:
    values = {key: value for key, value in TINY.items() if "." not in key}
    values["run"] = {"uri": str(folder / "run")}
    values["data"] = {**TINY["data"], "max_tokens": 100}  # type: ignore[dict-item]
    values["train"] = {**TINY["train"], "max_steps": 10**6, "evaluate_every": 10**6}  # type: ignore[dict-item]
    values["checkpoint"] = {"every_steps": 10**6, "drain_seconds": 20.0}
    kubernetes = {"image": "i", "memory_gib": 1.0, "workers_per_pod": 2, "volume_claim": "c",
                  "volume_path": str(folder)}  # fmt: skip
    values["cluster"] = {**TINY["cluster"], "submit": {"kubernetes": kubernetes}}  # type: ignore[dict-item]
    return manifest(config_from_dict(values))


class Pod:
    """A node of Ray with what the manifest gives its container."""

    def __init__(self, group: dict[str, Any], log: Path, *options: str, **env: str) -> None:
        (container,) = group["template"]["spec"]["containers"]
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        self.environment = {**os.environ, **FOR_BUSY_MACHINES, **given, **env}
        self.before_end = container["lifecycle"]["preStop"]["exec"]["command"]
        start = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        self.log = log
        with log.open("w") as output:
            # Not with the `--block` of KubeRay: see ray_cluster.py.
            subprocess.Popen(
                ["ray", "start", *start, *options], env=self.environment,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip


def answers() -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{DASHBOARD}/api/version", timeout=5).close()
    except urllib.error.HTTPError:  # it asks for a token
        return True
    except OSError:
        return False
    return True


def main(folder: Path, which: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    job = job_of(folder)
    cluster = job["spec"]["rayClusterSpec"]
    head_group, (worker_group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    head = Pod(
        head_group, folder / "head.log", "--head", "--node-ip-address=127.0.0.1", f"--port={PORT}",
        f"--dashboard-port={DASHBOARD}", f"--temp-dir={folder}/ray", **token,
    )  # fmt: skip
    until(answers, head.log)
    address = f"127.0.0.1:{PORT}"
    worker = Pod(
        worker_group, folder / "worker.log", f"--address={address}", "--node-ip-address=127.0.0.1",
        "--dashboard-agent-listen-port=52400", **token, RAY_ADDRESS=address,
    )  # fmt: skip
    until(lambda: "Ray runtime started" in worker.log.read_text(), worker.log)

    (annotation,) = head_group["template"]["metadata"]["annotations"].values()
    path = folder / "config.yaml"
    path.write_text(annotation)
    entry = [*job["spec"]["entrypoint"].split()[:-1], str(path)]
    head.call("ray", "job", "submit", *JOBS, "--submission-id=one", "--no-wait", "--", *entry)
    metrics, log = folder / "run" / "metrics.jsonl", folder / "job.log"

    def trains() -> bool:
        log.write_text(head.call("ray", "job", "logs", *JOBS, "one").stdout)
        return metrics.exists() and metrics.read_text().count('"loss"') >= 8

    until(trains, log)
    pod = head if which == "head" else worker
    before = pod.before_end
    if pod is worker:
        # In a pod that is the one node. Of two on a machine Ray takes the first (2.60).
        there = head.call(sys.executable, "-c", NODE_OF_WORKERS.format(address=address))
        drain = f"ray drain-node --node-id {there.stdout.split()[-1]}"
        before = [word.replace("ray drain-node", drain) for word in before]
    began = time.monotonic()
    ended = pod.call(*before)
    seconds = time.monotonic() - began
    status = head.call("ray", "job", "status", *JOBS, "one")
    trains()
    print(json.dumps({
        "code": ended.returncode, "said": ended.stdout + ended.stderr, "seconds": seconds,
        "status": status.stdout, "log": log.read_text(),
        "saved": [path.name for path in folder.glob("run/checkpoints/manifests/*.manifest")],
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
