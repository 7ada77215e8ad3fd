"""Data prepared by tasks of a real Ray: the bytes of one machine, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_embed.cluster.ray_head import own_ray
from dist_embed.data.languages.synthetic import SyntheticLanguage
from tests.integration.conftest import Command
from tests.integration.several_commands import in_one_process
from tests.stores.s3_server import MotoServer, connect

pytestmark = [
    pytest.mark.usefixtures("ray_alone_until_the_file_ends"),
    pytest.mark.heavy,
    pytest.mark.timeout(600, func_only=True),
]
KINDS: dict[str, dict[str, Any]] = {
    "word": {"kind": "word"},
    "sides": {"kind": "word", "shared": False, "vocab_size": 90, "oov_buckets": 7},
    "bpe": {"kind": "bpe", "vocab_size": 120},
    "unigram": {"kind": "unigram", "vocab_size": 120, "shared": False},
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(scope="module")
def ray(ray_alone_until_the_file_ends: None, s3: MotoServer) -> Iterator[dict[str, str]]:
    """A Ray with two slots whose workers know the store; the environment that reaches it."""
    more = {
        **s3.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers yield to all other processes: on a busy machine they would not begin.
        "RAY_worker_niceness": "0",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in more.items():
            patch.setenv(name, value)
        with own_ray(2) as address:
            yield {**os.environ, "RAY_ADDRESS": address}


@pytest.fixture(scope="module")
def corpus(s3: MotoServer) -> dict[str, dict[str, str]]:
    """``data.train`` and ``data.validation`` of a configuration, on the store."""
    store = connect(s3.url)
    language = SyntheticLanguage(nouns=30, verbs=12, adjectives=8, seed=3)
    corpora = {}
    for name, size in (("train", 600), ("validation", 70)):
        sides = {}
        for place, side in enumerate(("source", "target")):
            lines = [pair[place] for pair in language.pairs(size, name, 3)]
            sides[side] = f"s3://bucket/text/{name}.{side}.txt"
            store.pipe_file(sides[side], "".join(f"{line}\n" for line in lines).encode())
        corpora[name] = sides
    return corpora


def written(folder: Path, corpus: dict[str, dict[str, str]], kind: str, data_uri: str) -> str:
    """A configuration file."""
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump({
        "run": {"uri": "s3://bucket/run"}, "train": {"max_steps": 1}, "tokenizer": KINDS[kind],
        "data": {"uri": data_uri, **corpus, "shard_sentences": 40, "max_tokens": 20,
                 "too_long": "cut", "num_processes": 1},
    }))  # fmt: skip
    return str(path)


def files_of(s3: MotoServer, data_uri: str) -> dict[str, bytes]:
    """All files of prepared data, on the store, by name."""
    store = connect(s3.url)
    path = data_uri.removeprefix("s3://")
    folder = json.loads(store.cat_file(f"{path}/data.json"))["folder"]
    names = store.find(f"{path}/{folder}")
    return {name.removeprefix(f"{path}/{folder}/"): store.cat_file(name) for name in names}


def test_the_bytes_are_those_of_one_machine(
    ray: dict[str, str], s3: MotoServer, corpus: dict[str, dict[str, str]], tmp_path: Path,
    dist_embed: Command,
) -> None:  # fmt: skip
    there = []
    for kind in KINDS:
        config = written(tmp_path, corpus, kind, f"s3://bucket/there/{kind}")
        there.append(["prepare", config, "data.num_processes=0"])
        here = ("cluster.launcher=local", f"data.uri=s3://bucket/here/{kind}")
        dist_embed("prepare", config, *here)
    in_one_process(*there, environment=ray)
    for kind in KINDS:
        expected, found = (files_of(s3, f"s3://bucket/{at}/{kind}") for at in ("here", "there"))
        assert len(expected) > 20
        assert found.keys() == expected.keys()
        # Of `unigram` the library's trainer gives other scores in every run.
        if kind != "unigram":
            assert [name for name in expected if found[name] != expected[name]] == [], kind


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_half_way_and_started_again(
    ray: dict[str, str], s3: MotoServer, corpus: dict[str, dict[str, str]], tmp_path: Path,
    dist_embed: Command, number: signal.Signals,
) -> None:  # fmt: skip
    store = connect(s3.url)
    name = f"bucket/{number.name}"
    config = written(tmp_path, corpus, "sides", f"s3://{name}")
    process = subprocess.Popen(
        [sys.executable, "-m", "dist_embed.cli.main", "prepare", config],
        env=ray, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 300
    while len([path for path in store.find(name) if "/finished/train/" in path]) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=100)
    assert not store.exists(f"{name}/data.json")
    if number == signal.SIGTERM:
        assert process.returncode == 143, said
        assert said.splitlines()[-1].startswith("dist-embed: ended by SIGTERM")
    else:  # nobody renews its turn, which is not waited for here
        store.rm_file(f"{name}/preparing.json")
    said = in_one_process(["prepare", config], environment=ray)
    assert "shards had been finished by a preparation that was ended" in said.stdout
    dist_embed("prepare", config, "cluster.launcher=local", f"data.uri=s3://{name}-not")
    assert files_of(s3, f"s3://{name}") == files_of(s3, f"s3://{name}-not")
    assert len(store.ls(name)) == 2  # the data, and what names them


def test_a_cluster_too_small_for_the_workers_is_told_before_data_are_prepared(
    ray: dict[str, str], s3: MotoServer, corpus: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    config = written(tmp_path, corpus, "word", "s3://bucket/too_small")
    done = subprocess.run(
        [sys.executable, "-m", "dist_embed.cli.main", "train", config, "cluster.num_workers=3",
         "cluster.launcher=ray"],
        env=ray, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, f"{done.stdout}\n{done.stderr}"
    assert "needs 3 CPUs (one per worker); the Ray cluster has 2" in done.stderr
    store = connect(s3.url)
    assert not [path for path in store.find("bucket/too_small") if path.endswith(".json")]


# What is mapped over numbers by the program below: importable, as all functions of pools are.
FUNCTIONS = """
import os, signal, time
from pathlib import Path
from dist_embed.errors import UserError
def lost_once(number, folder):
    if number == 2 and not Path(folder, "lost").exists():
        Path(folder, "lost").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number
def always_lost(number, folder):
    os.kill(os.getpid(), signal.SIGKILL)
def refuses(number, folder):
    raise UserError("nothing to be done with this")
def slow(number, folder):
    Path(folder, "begun").touch()
    time.sleep(600)
"""
PROGRAM = """
import json, os, sys, time
from pathlib import Path
import functions_of_tasks as functions
from dist_embed.cluster.ray_tasks import ray_tasks
from dist_embed.errors import DistEmbedError
folder, told = sys.argv[1], {}
for name, seconds in (("lost_once", 300), ("always_lost", 300), ("refuses", 300), ("slow", 15)):
    try:
        with (
            ray_tasks(
                folder, address=os.environ["RAY_ADDRESS"], num_tasks=0, timeout_seconds=seconds
            ) as tasks,
            tasks.pool() as pool,
        ):
            numbers = ((number, folder) for number in range(8))
            told[name] = list(pool.map(getattr(functions, name), numbers))
    except DistEmbedError as exc:
        told[name] = f"{type(exc).__name__}: {exc}"
print(json.dumps(told))
"""


def test_tasks_that_are_lost_that_refuse_and_that_do_not_end(
    ray: dict[str, str], tmp_path: Path
) -> None:
    """A task whose process is killed is begun again; what comes again is told in one line."""
    (tmp_path / "functions_of_tasks.py").write_text(FUNCTIONS)
    path = f"{tmp_path}{os.pathsep}{ray.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True,
        timeout=500, env={**ray, "PYTHONPATH": path}, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "lost").exists()
    assert told["lost_once"] == list(range(8))
    assert told["always_lost"].startswith("RunFailed: a task that prepares data was lost 4 times")
    assert told["refuses"] == "UserError: nothing to be done with this"
    assert told["slow"].startswith("RunFailed: no task that prepares data has ended for 15 s")
    assert (tmp_path / "begun").exists()
    assert not (tmp_path / "scratch").exists()
