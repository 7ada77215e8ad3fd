"""The quickstart as a job of a real Ray: its run and data lie in a store, and nowhere else."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Command
from tests.integration.ray_cluster import ray_cluster
from tests.stores.s3_server import MotoServer, connect, environment

pytestmark = [
    pytest.mark.heavy, pytest.mark.usefixtures("ray_alone"),
    pytest.mark.timeout(3600, func_only=True),
]  # fmt: skip
CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
RUN = "s3://bucket/quickstart"


@pytest.fixture
def cluster(ray_alone: None, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Its nodes, and this process, know the store by their environment."""
    with (
        MotoServer(tmp_path / "moto") as server,
        tempfile.TemporaryDirectory(prefix="rq", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        server.make_bucket("bucket")
        (Path(folder) / "t").mkdir()
        patch.setenv("TMPDIR", f"{folder}/t")
        for name, value in environment(server.url).items():
            patch.setenv(name, value)
        with ray_cluster(Path(folder)) as found:
            for name, value in found.items():
                patch.setenv(name, value)
            yield found


def test_the_quickstart_as_a_job_with_all_it_has_in_a_store(
    cluster: dict[str, str], as_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    done = subprocess.run(  # on a busy machine it takes a quarter of an hour
        [sys.executable, "-m", "dist_embed.cli.main", "submit", CONFIG, "--to", "ray",
         f"run.uri={RUN}", "--follow"],
        capture_output=True, text=True, timeout=2400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 600/600" in done.stdout
    found = re.search(r"BLEU (\d+\.\d+)", as_process("evaluate", RUN, "--workers", "1").stdout)
    assert found
    assert float(found[1]) >= 50

    names = connect(cluster["AWS_ENDPOINT_URL"]).find("bucket/quickstart")
    assert any("/data/" in name for name in names)
    assert any("/checkpoints/" in name for name in names)
    assert list(here.iterdir()) == []
    kept = {name.rsplit("/", 1)[-1] for name in names if not name.endswith((".log", ".yaml"))}
    left = {path.name for path in Path(cluster["TMPDIR"]).rglob("*") if path.is_file()}
    assert not kept & left
