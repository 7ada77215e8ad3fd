"""Jobs of a real Slurm, on this machine alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_embed.checkpoint.catalogue import list_steps
from tests.integration.run_metrics import losses, until
from tests.integration.several_commands import Call, of_jobs
from tests.integration.slurm_cluster import missing, slurm

pytestmark = pytest.mark.skipif(
    bool(missing()),
    reason=f"Debian's slurm-wlm and munge are not installed: {', '.join(missing())}",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="sl", dir="/tmp") as folder, slurm(Path(folder)) as env:
        yield {**env, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


commands, call = of_jobs("dist_embed.jobs.slurm")


def number_of(said: str) -> str:
    found = re.match(r"job (\d+): ", said)
    assert found, said
    return found[1]


@pytest.mark.timeout(900)
def test_a_job_is_stopped_and_the_same_submission_goes_on_to_the_end(
    config: str, call: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    long = ("submit", config, "--to", "slurm", "train.schedule=constant",
            "embedding.schedule=constant", "train.evaluate_every=100000",
            "checkpoint.every_steps=100000")  # fmt: skip
    number = number_of(call(*long, "train.max_steps=100000").stdout)
    until(lambda: len(losses(run)) >= 3)
    assert re.search(rf"\| {number} +\| running .* {re.escape(str(run))} ", call("jobs").stdout)
    assert "running" in call("status", number).stdout
    assert "asked to stop" in call("stop", number).stdout
    until(lambda: "exit code 143" in call("status", number).stdout)
    said = call("logs", number).stdout
    steps = list_steps(str(run))
    assert f"stopped as asked after step {steps[0]}" in said
    assert len(losses(run)) == steps[-1]
    assert call("jobs").stdout.count("|") == call("jobs").stdout.splitlines()[0].count("|") * 2

    last = steps[-1] + 2
    followed = call(*long, f"train.max_steps={last}", "--follow").stdout
    assert f"step {last}/{last}" in followed
    assert len(losses(run)) == last
    again = number_of(followed)
    assert "completed" in call("status", again).stdout
    assert "completed" in call("stop", again).stdout


@pytest.mark.heavy
def test_a_job_that_fails_ends_the_command_that_follows_it(config: str, call: Call) -> None:
    bad = ("data.uri=/proc/none", "--to", "slurm", "--follow")
    done = call("submit", config, *bad, code=1)
    assert "/proc/none" in done.stdout
    assert "failed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cluster.submit.slurm.partition=night"], "invalid partition specified: night"),
        (["cluster.submit.slurm.gpus=true"], "Invalid generic resource"),  # there are none
        (["cluster.submit.slurm.nodes=3"], "as many workers on each node"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_said(
    config: str, call: Call, arguments: list[str], complaint: str
) -> None:
    said = call("submit", config, "--to", "slurm", *arguments, code=2).stderr
    assert complaint in said
    assert len(said.splitlines()) == 1


def test_jobs_of_others_and_unknown_ones_are_told_from_ours(
    cluster: dict[str, str], call: Call
) -> None:
    sent = subprocess.run(
        ["sbatch", "--parsable", "--wrap=true", "--output=/dev/null"], env=cluster,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "was not sent by `dist-embed submit`" in call("stop", sent.stdout.strip(), code=2).stderr
    assert "Invalid job id" in call("status", "4000000", code=2).stderr
    by_force = call("logs", "run", "--to", "slurm", code=2).stderr
    assert "'run' is not allowed: a number" in by_force


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_before_its_time_ends_a_job_saves_and_queues_again(
    config: str, cluster: dict[str, str], call: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sent = call(
        "submit", config, "--to", "slurm", "train.max_steps=100000", "train.schedule=constant",
        "embedding.schedule=constant", "train.evaluate_every=100000", "checkpoint.drain_seconds=1",
        "checkpoint.every_steps=100000", "cluster.submit.slurm.hours=0.11",
    )  # fmt: skip
    number = number_of(sent.stdout)
    until(lambda: "queues again" in call("logs", number).stdout, 500)
    (saved,) = list_steps(str(run))
    now = ["scontrol", "update", f"JobId={number}", "StartTime=now"]
    subprocess.run(now, env=cluster, check=False, timeout=60)  # it would wait two minutes, or has
    until(lambda: len(losses(run)) > saved, 600)
    shown = subprocess.run(
        ["scontrol", "show", "job", number], env=cluster, check=True, timeout=60,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert re.search(r"Restarts=[1-9]", shown)
    subprocess.run(["scancel", number], env=cluster, check=True, timeout=60)


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_a_job_whose_nodes_others_take_saves_and_queues_again(
    config: str, cluster: dict[str, str], call: Call, tmp_path: Path
) -> None:
    """Of that Slurm signals the workers alone. And a stop afterwards is one for good."""

    def slurm(*command: str) -> str:
        return subprocess.run(
            command, env=cluster, check=True, timeout=60, capture_output=True, text=True
        ).stdout

    run = tmp_path / "run"
    sent = call(
        "submit", config, "--to", "slurm", "train.max_steps=100000", "train.schedule=constant",
        "embedding.schedule=constant", "train.evaluate_every=100000",
        "checkpoint.every_steps=100000",
    )  # fmt: skip
    number = number_of(sent.stdout)
    until(lambda: len(losses(run)) >= 3)
    slurm("sbatch", "--partition=high", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 5")
    until(lambda: "others take the nodes: the job queues again" in call("logs", number).stdout, 300)
    (saved,) = list_steps(str(run))
    assert len(losses(run)) == saved
    until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", number), 120)
    # It would wait two minutes, or has begun.
    subprocess.run(
        ["scontrol", "update", f"JobId={number}", "StartTime=now"], env=cluster, check=False,
        timeout=60,
    )  # fmt: skip
    until(lambda: len(losses(run)) > saved, 600)
    call("stop", number)
    until(lambda: "exit code 143" in call("status", number).stdout, 300)
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
