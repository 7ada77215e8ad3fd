"""Jobs of a real Ray, with token authentication and without, on this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dist_embed.checkpoint.catalogue import list_steps
from tests.integration.conftest import Command
from tests.integration.prepared_files import prepared_files
from tests.integration.ray_cluster import ray_cluster
from tests.integration.run_metrics import losses, until
from tests.integration.several_commands import Call, of_jobs
from tests.left_behind import shared_memory_of_nobody

pytestmark = [
    pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.timeout(600, func_only=True),
]


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, ray_alone_until_the_file_ends: None
) -> Iterator[dict[str, str]]:
    # Of a short path: there Ray puts sockets, whose names may have 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="rj", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        (Path(folder) / "t").mkdir()
        environment.setenv("TMPDIR", f"{folder}/t")
        asks = getattr(request, "param", True)
        with ray_cluster(Path(folder), asks_for_token=asks) as found:
            yield found


commands, call = of_jobs("dist_embed.jobs.ray_server")


def name_of(said: str) -> str:
    found = re.search(r"^job (\S+): ", said, re.MULTILINE)
    assert found, said
    return found[1]


def drivers(cluster: dict[str, str]) -> list[psutil.Process]:
    """Of jobs on this cluster: other tests may have one too."""
    found = []
    for one in psutil.process_iter(["cmdline", "environ"]):
        is_ours = cluster["TMPDIR"] == (one.info["environ"] or {}).get("TMPDIR")
        if is_ours and "run-job" in (one.info["cmdline"] or []):
            found.append(one)
    return found


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" * 9}, "does not take this token"),
        pytest.param({"RAY_AUTH_MODE": "disabled"}, "asks for a token", marks=pytest.mark.heavy),
    ],
)
def test_without_the_token_nothing_is_sent(
    config: str, as_process: Command, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str], complaint: str,
) -> None:  # fmt: skip
    for name, value in {**cluster, **variables}.items():
        monkeypatch.setenv(name, value)
    said = as_process("submit", config, "--to", "ray", code=2).stderr
    assert complaint in said
    assert len(said.splitlines()) == 1


@pytest.mark.timeout(900, func_only=True)
def test_a_job_is_stopped_and_the_same_submission_goes_on_to_the_end(
    config: str, call: Call, cluster: dict[str, str], dist_embed: Command, tmp_path: Path
) -> None:
    run, left = tmp_path / "run", shared_memory_of_nobody()
    long = ("submit", config, "--to", "ray", "train.schedule=constant",
            "embedding.schedule=constant", "train.evaluate_every=100000",
            "data.shard_sentences=60",
            # Without an init that buries orphans Ray waits for twice as long, and a minute.
            "checkpoint.every_steps=100000", "checkpoint.drain_seconds=10")  # fmt: skip
    first = call(*long, "train.max_steps=100000").stdout
    name = name_of(first)
    assert f"dashboard: {cluster['RAY_API_SERVER_ADDRESS']}/#/jobs/{name}" in first
    until(lambda: len(losses(run)) >= 3)
    assert drivers(cluster) != []
    assert "asked to stop" in call("stop", name).stdout
    until(lambda: "exit code 143" in call("status", name).stdout)
    steps = list_steps(str(run))
    assert len(losses(run)) == steps[-1]  # it has saved what it had done

    last = steps[-1] + 2
    followed = call(*long, f"train.max_steps={last}", "--follow").stdout
    assert f"step {last}/{last}" in followed
    assert len(losses(run)) == last
    assert "has ended: succeeded, exit code 0" in call("stop", name_of(followed)).stdout

    # By tasks of Ray: the same bytes as by this process.
    dist_embed("prepare", config, "data.shard_sentences=60", f"data.uri={tmp_path / 'here'}")
    assert prepared_files(run / "data") == prepared_files(tmp_path / "here")

    assert drivers(cluster) == []
    token = Path(cluster["RAY_AUTH_TOKEN_PATH"]).read_text()
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(token.encode() in text for text in [*texts, followed.encode()])
    assert list(Path(cluster["TMPDIR"]).glob("dist_embed-*")) == []
    # What others are just making is nobody's for a moment.
    until(lambda: shared_memory_of_nobody() <= left)


@pytest.mark.heavy
def test_one_who_follows_is_told_why_a_job_fails(config: str, call: Call, tmp_path: Path) -> None:
    long = call("submit", config, "--to", "ray", "train.max_steps=100000").stdout
    said = call("submit", config, "--to", "ray", code=2).stderr
    assert f"is the run of job {name_of(long)}, which has not ended" in said
    call("stop", name_of(long))

    other = f"run.uri={tmp_path / 'other'}"
    done = call(
        "submit", config, "--to", "ray", other, "cluster.num_workers=64", "--follow", code=2
    )
    assert (
        "cluster.num_workers=64 needs 64 CPUs (one per worker); the Ray cluster has 4"
        in done.stdout
    )
    assert "failed" in done.stderr
    said = call("jobs").stdout
    assert re.search(rf"\| {name_of(long)} +\| (running|stopped) ", said)
    assert re.search(rf"\| {name_of(done.stdout)} +\| failed ", said)


@pytest.mark.heavy
def test_a_job_starts_in_the_folder_that_is_sent_with_it(
    config: str, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    (folder / "dist_embed").mkdir(parents=True)
    (folder / "dist_embed" / "__init__.py").write_text("raise ImportError('shadowed')\n")
    words = ["red", "green", "blue", "small", "large", "cat", "dog", "bird"]
    pairs = "".join(f"the {a} {b}\tdas {b} {a}\n" for a in words for b in words)
    (folder / "pairs.tsv").write_text(f"source\ttarget\n{pairs}")
    files = [f"data.{split}={{pairs: pairs.tsv}}" for split in ("train", "validation", "test")]
    sent = ("submit", config, "--to", "ray", "--follow", "--working-dir", "code",
            "data.synthetic=null", *files)  # fmt: skip
    done = call(*sent)
    assert "code: 0.0 MiB packed" in done.stdout
    assert "train: 64 pairs" in done.stdout
    assert "step 8/8" in done.stdout
    shadowed = call(*sent, "--with-package", f"run.uri={tmp_path / 'other'}", code=1)
    assert "shadowed" in shadowed.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("cluster", [False], indirect=True)
def test_a_head_that_asks_for_no_token_serves_its_own_machine(
    config: str, as_process: Command, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a token lies where Ray looks for one, once, as it is imported."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    done = as_process("submit", config, "--to", "ray", "--follow", "train.max_steps=2")
    assert "step 2/2" in done.stdout
