"""The Ray launcher, with a Ray of its own and on a running cluster."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dist_embed.checkpoint.catalogue import list_steps
from dist_embed.data.prepared_folder import prepared_folder
from tests.integration.conftest import Command
from tests.integration.ray_cluster import ray_cluster
from tests.integration.run_metrics import losses
from tests.left_behind import living

pytestmark = [
    pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.timeout(400, func_only=True),
]
ROOT = Path(__file__).resolve().parents[2]


def test_ray_trains_as_local_processes_do_and_stops_as_asked(
    config: str, dist_embed: Command, tmp_path: Path
) -> None:
    same = (f"data.uri={tmp_path / 'data'}", "train.schedule=constant",
            "embedding.schedule=constant", "train.evaluate_every=100000")  # fmt: skip
    dist_embed("train", config, *same, f"run.uri={tmp_path / 'local'}")
    # Of a short path: there Ray puts sockets, whose names may have 107 bytes.
    temporary = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(tmp_path / "home")}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    run = tmp_path / "run"
    command = ["train", config, *same, "train.max_steps=100000", "checkpoint.every_steps=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "dist_embed.cli.main", *command, "--launcher", "ray"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 200
        while len(losses(run)) < 8:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        this = psutil.Process(process.pid)
        started = this.children(recursive=True)
        assert {address for one in [this, *started] for address in listening(one)} == {"127.0.0.1"}
        # To every process, as the end of a Slurm step and `ray job stop` do, and twice.
        for receiver in [this, *started, this]:
            receiver.send_signal(signal.SIGTERM)
        said, complaint = process.communicate(timeout=200)
    assert process.returncode == 143, complaint
    found = re.fullmatch(
        r"dist-embed: stopped as asked after step (\d+); started again, the run goes on from "
        r"there\n",
        complaint,
    )
    assert found, complaint
    assert list_steps(str(run)) == [int(found[1])]
    for noise in ("ray", "INFO", "Warning", "pid="):
        assert noise not in said.replace(str(tmp_path), "")
    assert losses(run)[:8] == losses(tmp_path / "local")
    assert len(losses(run)) == int(found[1])
    assert living(started) == []
    assert not list(temporary.glob("dist_embed-*"))
    assert not (tmp_path / "home" / ".ray").exists()  # where Ray writes a token that all can read
    shutil.rmtree(temporary)


def listening(process: psutil.Process) -> list[str]:
    """The addresses where it hears TCP; those of version 6 that mean one of version 4 as that."""
    with suppress(psutil.NoSuchProcess):
        found = process.net_connections("inet")
        return [
            one.laddr.ip.removeprefix("::ffff:") for one in found
            if one.status == psutil.CONN_LISTEN
        ]  # fmt: skip
    return []


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_a_machine_without_a_network_trains_and_no_library_is_on_the_screen(
    config: str, dist_embed: Command, launcher: str
) -> None:
    dist_embed("prepare", config)
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if subprocess.run([*alone, "true"]).returncode:
        pytest.skip("namespaces cannot be made here")
    done = subprocess.run(
        [*alone, sys.executable, "-m", "dist_embed.cli.main", "train", config,
         "--launcher", launcher],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not [line for line in done.stdout.splitlines() if line.startswith(("[", "("))]


@pytest.mark.heavy
def test_a_command_whose_ray_node_ends_says_so_and_goes_on(config: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_embed.cli.main", "train", config, "--launcher", "ray",
               "train.max_steps=100000", "train.evaluate_every=100000"]  # fmt: skip
    one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 250
        while len(list_steps(str(tmp_path / "run"))) < 2:
            assert one.poll() is None, one.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = psutil.Process(one.pid).children(recursive=True)
        (raylet,) = [process for process in started if process.name() == "raylet"]
        raylet.kill()
        said, complaint = one.communicate(timeout=100)
    finally:
        one.kill()
    assert one.returncode == 1
    assert re.fullmatch(
        r"dist-embed: the Ray node .* has ended .*: the same command goes on from .*\n", complaint
    ), complaint
    assert "raylet" not in said
    assert living(started) == []


def test_no_cluster_at_the_address_is_said(config: str, refused: Callable[..., str]) -> None:
    said = refused("train", config, "cluster.address=127.0.0.1:1", "cluster.launcher=ray")
    assert "no Ray cluster answers at '127.0.0.1:1'" in said


@pytest.fixture(scope="module")
def cluster(
    ray_alone_until_the_file_ends: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A head node on this machine with its job server; the environment that reaches it."""
    with ray_cluster(tmp_path_factory.mktemp("cluster")) as environment:
        yield environment


# Its own first, while the module's cluster does not run yet.
@pytest.mark.heavy
@pytest.mark.parametrize("own", [True, False])
def test_an_error_in_a_ray_worker_reaches_the_user_at_once(
    config: str, as_process: Command, dist_embed: Command, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: bool,
) -> None:  # fmt: skip
    dist_embed("prepare", config)
    folder = Path(prepared_folder(str(tmp_path / "run" / "data")))
    (folder / "train" / "shard-00000.parquet").write_bytes(b"PAR1 not really")
    given = ["cluster.max_failures=2", "--launcher", "ray"]
    if not own:  # else the command starts a Ray, and ends it
        cluster: dict[str, str] = request.getfixturevalue("cluster")
        given.append(f"cluster.address={cluster['ADDRESS']}")
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, cluster[name])
    failed = as_process("train", config, *given, code=2)
    assert re.search(r"token shard .*shard-00000\.parquet.* expected, 11 bytes", failed.stderr)
    assert "Traceback" not in failed.stderr
    assert "workers are started again" not in failed.stdout
    if not own:  # on the dashboard it has a name
        listed = subprocess.run(
            [cluster["RAY"], "job", "list"],
            capture_output=True, text=True, env=cluster, timeout=100, check=True,
        )  # fmt: skip
        assert "'job_name': 'run'" in listed.stdout


@pytest.mark.heavy
def test_a_submitted_job_trains_on_the_cluster(
    config: str, cluster: dict[str, str], tmp_path: Path
) -> None:
    # The cluster was started from the environment of this test, so the job installs nothing.
    done = subprocess.run(
        [cluster["RAY"], "job", "submit", "--working-dir", ".", "--",
         "bash", "launch/run.sh", "train", config, "cluster.launcher=ray"],
        capture_output=True, text=True, env=cluster, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 8/8" in done.stdout
    assert len(losses(tmp_path / "run")) == 8
