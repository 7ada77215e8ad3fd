"""What is sent to a job server of Ray, and how its answers are told; `tests/integration/
test_cluster_jobs.py` has a Ray run it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import pytest
import ray
import yaml

from dist_embed.cli.main import main
from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data.preparation import ensure_data
from dist_embed.errors import UserError
from dist_embed.jobs.arrived import CONFIG, SENT_BY, config_of_job
from dist_embed.jobs.as_yaml import as_yaml
from dist_embed.jobs.job_server_address import is_loopback, job_server, use_token
from dist_embed.jobs.ray_request import COMMAND, check_corpora, local_paths, new_id, request
from tests.unit.small_corpus import one_is_this_process

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN",
             "RAY_AUTH_TOKEN_PATH", CONFIG, SENT_BY)  # fmt: skip


@pytest.fixture(autouse=True)
def no_cluster_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def config_of(uri: str = "/runs/one", data: Any = None, **cluster: Any) -> Config:
    return config_from_dict({
        "run": {"uri": uri}, "data": data or {"synthetic": {}}, "train": {"max_steps": 9},
        "checkpoint": {"drain_seconds": 30.2}, "cluster": {"num_workers": 4, **cluster},
    })  # fmt: skip


def test_a_job_is_sent_its_configuration_the_time_to_stop_and_the_name_of_its_run() -> None:
    sent = request(config_of("s3://b/gröss 1", address="10.0.0.1:6379"), ships_folder=False)
    variables = sent["runtime_env"]["env_vars"]
    there = config_from_dict(yaml.safe_load(variables[CONFIG]))
    assert there == config_of("s3://b/gröss 1", launcher="ray", address=None)
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "181"  # a whole number, not less, and a minute
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert sent["entrypoint"] == "exec dist-embed run-job"
    assert sent["metadata"]["run_uri"] == "s3://b/gröss 1"
    assert sent["metadata"]["job_name"] == "gr_ss_1"
    assert new_id(sent).startswith("gr_ss_1-")
    assert new_id(sent) != new_id(sent)


def test_a_node_without_the_command_is_told() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", COMMAND], env={"PATH": "/none"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 127
    assert "dist-embed: not found" in done.stderr


def test_a_run_with_a_number_for_a_name_is_no_job_of_slurm() -> None:
    assert not new_id(request(config_of("/runs/4711"), ships_folder=False)).isdigit()


FILES = {"train": {"source": ["a.en", "b.en"], "target": "/all/b.de"}}


@pytest.mark.parametrize(
    ("uri", "data", "complaint"),
    [
        ("runs/one", None, r"run\.uri: 'runs/one' is not allowed"),
        ("file://runs/one", None, r"run\.uri: 'file://runs/one' is not allowed"),
        ("/runs/one", {"synthetic": {}, "uri": "data"}, r"data\.uri: 'data' is not allowed"),
        ("memory://one", None, r"run\.uri: 'memory://one' is not allowed on a Ray cluster"),
        ("/runs/one", {"synthetic": {}, "uri": "memory://d"}, r"data\.uri: 'memory://d' is not"),
        ("/runs/one", FILES, r"data\.train\.source: 'a\.en' is not allowed in a job"),
        (
            "/runs/one",
            {"train": {"pairs": ["/all/a.tsv", "s3://b/c.tsv", "b.tsv"]}},
            r"data\.train\.pairs: 'b\.tsv' is not allowed in a job",
        ),
        ("/runs/one", {"train": {"pairs": "memory://a.tsv"}}, r"pairs: 'memory://a\.tsv' is not"),
        ("/runs/one", {"train": {"pairs": "s3://b/" + "x" * 100_000}}, "at most 100,000"),
    ],
)
def test_what_means_nothing_on_the_cluster_is_refused(uri: str, data: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        request(config_of(uri, data), ships_folder=False)


def test_vectors_that_lie_here_are_refused() -> None:
    values = config_of().model_dump()
    vectors = {"uri": "vectors.vec", "format": "glove"}
    values["embedding"]["tables"]["source"] = {"pretrained": vectors}
    with pytest.raises(UserError, match=r"source\.pretrained\.uri: 'vectors\.vec' is not allowed"):
        request(config_from_dict(values), ships_folder=True)


def test_a_corpus_may_lie_in_the_folder_that_is_sent() -> None:
    assert (
        "a.en"
        in request(config_of(data=FILES), ships_folder=True)["runtime_env"]["env_vars"][CONFIG]
    )


@pytest.mark.parametrize(
    ("uri", "is_sent"),
    [
        ("a.en", True), ("./x/../a.en", True), ("my/*.en", True), ("**/c.en", True),
        ("file://a.en", True), ("/all/b.en", True), ("s3://b/b.en", True),
        ("data/a.en", False), ("../a.en", False), ("b.en", False), ("*.de", False),
        ("memory://a.en", False),
    ],
)  # fmt: skip
def test_each_corpus_is_at_hand_or_sent(uri: str, is_sent: bool) -> None:
    config = config_of(data={"train": {"pairs": ["a.en", uri]}})
    if is_sent:
        check_corpora(config, ["a.en", "my/b.en", "my/deep/c.en"])
    else:
        with pytest.raises(UserError, match=rf"pairs: '{re.escape(uri)}' is not allowed in a job"):
            check_corpora(config, ["a.en", "my/b.en", "my/deep/c.en"])


def test_no_corpus_is_needed_where_its_prepared_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the run would take them: of the same settings, and of this corpus where it is here."""
    monkeypatch.chdir(tmp_path)
    Path("a.tsv").write_text("source\ttarget\n" + "a b\tc d\n" * 20)
    values = {
        split: {"pairs": "a.tsv"} for split in ("train", "validation", "test")
    } | {"uri": str(tmp_path / "data"), "num_processes": 1}  # fmt: skip
    config = config_of(str(tmp_path / "run"), values)
    refused = pytest.raises(UserError, match=r"'a\.tsv' is not allowed in a job: .* are prepared")
    with refused:
        check_corpora(config)
    with one_is_this_process(1):
        ensure_data(config, lambda line: None)
    check_corpora(config)
    request(config, ships_folder=False)
    Path("a.tsv").rename("b.tsv")
    check_corpora(config)
    with pytest.raises(UserError, match=r"(?s)prepared with other settings:.*data\.max_tokens"):
        check_corpora(config_of(str(tmp_path / "run"), values | {"max_tokens": 7}))
    Path("a.tsv").write_text("source\ttarget\nother\ttext\n")
    with pytest.raises(UserError, match="the corpora have changed since"):
        check_corpora(config)
    with refused:
        check_corpora(config_of(str(tmp_path / "run"), values | {"uri": "nowhere://b/data"}))


def test_paths_that_nodes_must_share_are_known() -> None:
    config = config_of(data={"train": {"source": ["a.en", "s3://b/b.en"], "target": "/all/b.de"},
                             "uri": "s3://b/data"})  # fmt: skip
    assert local_paths(config) == ["run.uri", "data.train.target"]
    values = config.model_dump()
    pretrained = {"uri": "s3://b/v.npy", "format": "npy", "words": "file:///all/words"}
    values["embedding"]["tables"]["source"] = {"pretrained": pretrained}
    values["data"]["train"]["source"] = ["s3://b/b.en", "/all/a.en", "/all/c.en"]
    assert local_paths(config_from_dict(values)) == [
        "run.uri", "embedding.tables.source.pretrained.words", "data.train.source",
        "data.train.target",
    ]  # fmt: skip


def test_a_store_without_a_client_here_may_have_one_there() -> None:
    config = config_of("nowhere://b/one")
    assert request(config, ships_folder=False)["metadata"]["run_uri"] == "nowhere://b/one"
    assert local_paths(config) == []


def test_what_is_kept_stands_whole_and_can_be_read() -> None:
    twice = {"a": 1}
    text = as_yaml({"first": twice, "second": twice, "lines": "größe\n$x\n"})
    assert text == "first:\n  a: 1\nsecond:\n  a: 1\nlines: |\n  größe\n  $x\n"


@pytest.mark.parametrize(
    ("given", "variables", "url"),
    [
        ("head:8265", {}, "http://head:8265"),
        ("https://head/", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "https://head"),
        (None, {"RAY_API_SERVER_ADDRESS": "h:1", "RAY_ADDRESS": "http://other:1"}, "http://h:1"),
        (None, {"RAY_ADDRESS": "http://other:1"}, "http://other:1"),
    ],
)
def test_an_address_is_found(
    given: str | None, variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert job_server(given) == url


@pytest.mark.parametrize(
    ("given", "variables", "complaint"),
    [
        (None, {}, r"which Ray cluster\? give RAY_API_SERVER_ADDRESS="),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "is where drivers connect, not the job server"),
        ("ray://head:10001", {}, "address: 'ray://head:10001' is not allowed"),
        ("http://me:secret@head:1", {}, "is not allowed"),
        ("head:99999", {}, "is not allowed"),
    ],
)
def test_an_address_that_can_be_none_is_refused(
    given: str | None, variables: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        job_server(given)


HERE, THERE = "http://127.0.0.1:1", "http://10.0.0.1:1"


def test_this_machine_is_told_from_others() -> None:
    here = [HERE, "http://localhost", "https://[::1]:8265"]
    assert [is_loopback(url) for url in [*here, THERE, "http://head:1"]] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    ("variables", "url", "insecure", "mode"),
    [
        ({"RAY_AUTH_TOKEN": "t"}, THERE, False, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "a-file"}, THERE, False, "token"),
        ({}, HERE, False, None),
        ({}, THERE, True, None),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, HERE, False, "disabled"),
    ],
)
def test_a_token_that_is_there_is_used(
    variables: dict[str, str], url: str, insecure: bool, mode: str | None,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("t\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    use_token(url, insecure=insecure)
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_the_token_of_the_users_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    use_token(THERE, insecure=False)
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({}, f"{THERE} without token authentication is refused"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, "is refused"),
        ({"RAY_AUTH_MODE": "token"}, "but there is no token in RAY_AUTH_TOKEN, "),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/none"}, "but there is no token"),
    ],
)
def test_another_machine_is_not_spoken_to_without_a_token(
    variables: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        use_token(THERE, insecure=False)


@pytest.mark.parametrize(
    ("here", "sent_by", "complaint"),
    [("0.2.0", "0.2.0", None), ("0.2.0", "0.2.1", None),
     ("0.2.0", "0.3.0", "who sent the job has 0.3.0"), ("0.10.0", "0.1.0", "install the same"),
     ("0.2.0", "", "who sent the job has another version")],
)  # fmt: skip
def test_a_job_of_another_version_ends_with_a_line(
    here: str, sent_by: str, complaint: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sent = request(config_of(), ships_folder=False)["runtime_env"]["env_vars"]
    monkeypatch.setenv(CONFIG, sent[CONFIG])
    monkeypatch.setenv(SENT_BY, sent_by)
    for module in ("jobs.arrived", "installed"):
        monkeypatch.setattr(f"dist_embed.{module}.own_version", lambda: here)
    if complaint:
        with pytest.raises(UserError, match=complaint):
            config_of_job()
    else:
        assert config_of_job() == config_of(launcher="ray")
        assert ("0.2.1 has sent this job to 0.2.0" in capsys.readouterr().err) == (here != sent_by)


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_commands_of_a_job_of_another_version_end_before_they_read(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs of Slurm and Kubernetes call these; the configuration may have keys of that version."""
    monkeypatch.setenv(SENT_BY, "0.99.0")
    assert main([command, "/no/such/file.yaml"]) == 2
    assert "but who sent the job has 0.99.0: install the same" in capsys.readouterr().err


def test_what_a_job_calls_is_for_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run-job"]) == 2
    assert f"{CONFIG} is not set" in capsys.readouterr().err


CONFIG_FILE = """\
run: {uri: /runs/one}
data: {synthetic: {}}
train: {max_steps: 9}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG_FILE)
    return str(path)


def test_a_dry_run_prints_what_would_be_sent_and_no_token(
    config_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "verysecret")
    to_ray = ["cluster.submit.to=ray", "cluster.submit.ray.address=http://head:8265"]
    assert main(["submit", config_file, *to_ray, "--dry-run", "--working-dir", "code"]) == 0
    said = capsys.readouterr().out
    sent = yaml.safe_load(said)
    assert sent["entrypoint"] == "exec dist-embed run-job"
    assert sent["runtime_env"]["working_dir"] == "code"
    assert sent["metadata"]["run_uri"] == "/runs/one"
    assert "\n        uri: /runs/one\n" in said  # the configuration can be read
    assert "verysecret" not in said


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["submit", "C", "--to", "slurm", "--working-dir", "."], "are for --to ray"),
        (["submit", "C", "--to", "ray"], "which Ray cluster?"),
        (["submit", "C", "--to", "ray", "cluster.submit.ray.address=head:1"], "is refused"),
        (["status", "one-a1b2c3"], "which Ray cluster?"),
        (["logs", "one-a1b2c3", "--address", "http://10.0.0.1:8265"], "is refused"),
        (["stop", "4711"], "scontrol is not installed here"),
        (["stop", "one-a1b2c3", "--to", "slurm"], "'one-a1b2c3' is not allowed: a number"),
        (["status", "4711", "--to", "ray"], "which Ray cluster?"),
        (["jobs"], "no cluster is known here"),
        (["jobs", "--to", "slurm"], "squeue is not installed here"),
        (
            ["jobs", "--address", "127.0.0.1:1"],
            "no job server of Ray answers at http://127.0.0.1:1",
        ),
    ],
)
def test_the_name_of_a_job_says_whom_to_ask(
    command: list[str], complaint: str, config_file: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", "")
    assert main([config_file if word == "C" else word for word in command]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.splitlines()) == 1


class JobServer(BaseHTTPRequestHandler):
    """Answers as Ray's does (2.60), from `answers`: by method and path, a status and a body."""

    answers: ClassVar[dict[str, tuple[int, Any]]] = {}
    asked: ClassVar[list[str]] = []
    tokens: ClassVar[list[str | None]] = []

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.command == "PUT":
            time.sleep(0.5)  # longer than a connection may take in a test
            self.rfile.read(length)
            length, self.path = 0, "/packages"
        key = f"{self.command} {self.path}"
        self.asked.append(f"{key} {self.rfile.read(length).decode()}".strip())
        self.tokens.append(self.headers.get("Authorization"))
        status, body = self.answers.get(key, (404, f"{self.path} does not exist"))
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    JobServer.answers = {
        "GET /api/version": (200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
    }
    JobServer.asked, JobServer.tokens = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), JobServer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def details(name: str, status: str, **more: Any) -> dict[str, Any]:
    ours = {"dist_embed": "0.2.0", "run_uri": "/runs/one"}
    return {
        "type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x",
        "metadata": ours, "start_time": 1000, "end_time": 3_662_000, **more,
    }  # fmt: skip


def call(server: str, *command: str) -> int:
    return main([*command, "--address", server])


@pytest.mark.parametrize(
    ("status", "more", "code", "told"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0}, 0, ""),
        ("STOPPED", {}, 143, "stopped"),
        ("FAILED", {"driver_exit_code": 2, "message": "it failed"}, 2, "failed"),
        ("FAILED", {"driver_exit_code": -9}, 137, "failed"),
        ("FAILED", {"message": "runtime_env: no\nmore"}, 1, "failed: runtime_env: no"),
    ],
)
def test_a_command_that_follows_a_job_ends_as_it_does(
    status: str, more: dict[str, Any], code: int, told: str, server: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    JobServer.answers |= {
        "GET /api/jobs/one-1": (200, details("one-1", status, **more)),
        "GET /api/jobs/one-1/logs": (200, {"logs": "schön\n"}),
    }
    if code:
        with pytest.raises(SystemExit) as ended:
            call(server, "logs", "one-1", "--follow")
        assert ended.value.code == code
    else:
        assert call(server, "logs", "one-1", "--follow") == 0
    said = capsys.readouterr()
    assert said.out == "schön\n"
    assert said.err == (f"dist-embed: job one-1: {told}\n" if told else "")
    assert call(server, "status", "one-1") == 0
    assert f"running for 1:01:01, exit code {code}" in capsys.readouterr().out.replace(
        ", because: runtime_env: no", ""
    )
    assert call(server, "stop", "one-1") == 0
    assert f"has ended: {status.lower()}, exit code {code}" in capsys.readouterr().out
    assert not any("/stop" in asked for asked in JobServer.asked)


def test_jobs_of_others_are_told_from_ours(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = details("other", "RUNNING", metadata={})
    JobServer.answers |= {
        "GET /api/jobs/": (200, [other, details("one-1", "PENDING", message="waits a\nb")]),
        "GET /api/jobs/other": (200, other),
        "GET /api/jobs/bad": (500, "Traceback (most recent call last):\n  x\nTimeoutError: y\n"),
    }
    assert call(server, "jobs") == 0
    said = capsys.readouterr().out
    assert "other" not in said
    assert "waits a " in said
    for name, complaint in (
        ("other", "job other was not sent by `dist-embed submit`"),
        ("none", f"the job server at {server}: /api/jobs/none does not exist"),
        ("bad", f"the job server at {server}: TimeoutError: y"),
    ):
        assert call(server, "stop", name) == 2
        assert capsys.readouterr().err == f"dist-embed: {complaint}\n"


def test_a_run_has_one_job(
    server: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    JobServer.answers |= {
        "GET /api/jobs/": (200, [details("one-1", "RUNNING")]),
        "POST /api/jobs/": (200, {"job_id": "one-2", "submission_id": "one-2"}),
    }
    command = ["submit", config_file, "--to", "ray", f"cluster.submit.ray.address={server}"]
    assert main(command) == 2
    assert "'/runs/one' is the run of job one-1, which has not ended" in capsys.readouterr().err
    assert main([*command, "run.uri=/runs/two"]) == 0
    said = capsys.readouterr()
    assert said.out == f"job one-2: /runs/two\ndashboard: {server}/#/jobs/one-2\n"
    # Also by a loopback address, which may be the end of a tunnel.
    shared = "run.uri, data.uri: taken as paths that all nodes of the cluster share"
    assert said.err == f"dist-embed: {shared}\n"
    JobServer.answers["GET /api/jobs/"] = (200, [details("one-1", "STOPPED")])
    assert main(command) == 0
    sent = json.loads(JobServer.asked[-1].partition("/api/jobs/ ")[2])
    assert sent["submission_id"].startswith("one-")
    assert "working_dir" not in sent["runtime_env"]


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ({"GET /api/version": (401, "Unauthorized")}, "asks for a token: RAY_AUTH_MODE=token"),
        ({"GET /api/version": (403, "Forbidden")}, "does not take this token"),
        ({"GET /api/version": (404, "no")}, "is no job server of Ray"),
        ({"GET /api/version": (200, "<html>")}, "is no job server of Ray"),
        ({"GET /api/version": (200, {})}, "is no job server of Ray"),
        ({"GET /api/jobs/": (200, [])}, "asks for no token, so whoever reaches it runs code there"),
        (
            {"GET /api/jobs/": (302, "")},
            "is no job server of Ray that asks for a token: status 302",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_told_in_a_line(
    answers: dict[str, Any], complaint: str, server: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    # It is taken for another machine's.
    monkeypatch.setattr("dist_embed.jobs.ray_server.is_loopback", lambda url: False)
    JobServer.answers |= {"GET /api/jobs/": (401, "Unauthorized"), **answers}
    assert call(server, "jobs") == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.splitlines()) == 1
    # It is judged before it is sent a token.
    assert JobServer.asked[0] == "GET /api/jobs/"
    assert JobServer.tokens[0] is None
    assert ("GET /api/version" in JobServer.asked) == ("GET /api/version" in answers)


@pytest.mark.parametrize("is_here", [True, False])
def test_what_never_answers_is_told_soon(
    is_here: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head's other ports, for one."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setattr("dist_embed.jobs.ray_server.is_loopback", lambda url: is_here)
    monkeypatch.setattr("dist_embed.jobs.ray_server.FIRST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert call(address, "jobs") == 2
    said = capsys.readouterr().err
    assert said == f"dist-embed: the job server at {address} has not answered within 0 s\n"


@pytest.mark.parametrize(("there", "told"), [("2.60.1", False), ("2.59.0", True)])
def test_another_ray_there_is_told(
    there: str, told: bool, server: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    JobServer.answers |= {
        "GET /api/version": (200, {"version": "4", "ray_version": there, "ray_commit": "x"}),
        "GET /api/jobs/": (200, []),
        "POST /api/jobs/": (200, {"job_id": "one-2", "submission_id": "one-2"}),
    }
    to_ray = ["--to", "ray", f"cluster.submit.ray.address={server}"]
    assert main(["submit", config_file, *to_ray]) == 0
    said = capsys.readouterr().err
    assert (f"dist-embed: Ray {there} there, {ray.__version__} here" in said) == told


def test_a_folder_is_sent_however_long_it_takes(
    server: str, config_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "large").write_bytes(secrets.token_bytes(16 * 2**20))  # more than sockets hold
    monkeypatch.setattr("dist_embed.jobs.ray_server.CONNECT_SECONDS", 0.2)
    JobServer.answers |= {
        "GET /api/jobs/": (200, []),
        "PUT /packages": (200, ""),
        "POST /api/jobs/": (200, {"job_id": "one-2", "submission_id": "one-2"}),
    }
    to_ray = ["--to", "ray", f"cluster.submit.ray.address={server}"]
    command = ["submit", config_file, *to_ray, "run.uri=s3://b/one", "--working-dir", str(folder)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert f"{folder}: 16.0 MiB packed" in said.out
    assert said.err == ""
    sent = json.loads(JobServer.asked[-1].partition("/api/jobs/ ")[2])
    assert sent["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")


def test_neither_a_token_nor_a_run_is_sent_and_each_corpus_is(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sent: list[list[str]] = []

    def keep(self: object, job: dict[str, Any]) -> str:
        with ZipFile(job["runtime_env"]["working_dir"]) as archive:
            sent.append(archive.namelist())
        return "one-2"

    monkeypatch.setattr("dist_embed.jobs.ray_server.RayServer.submit", keep)
    for name in ("code/ray_token", "code/a.tsv", "code/data/b.tsv", "code/one/metrics.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("t")
    (tmp_path / "code" / "link").symlink_to("ray_token")
    monkeypatch.chdir(tmp_path / "code")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "./ray_token")
    Path("one.yaml").write_text(
        f"{{run: {{uri: 'file://{tmp_path}/code/one'}}, train: {{max_steps: 1}}, "
        "data: {train: {pairs: a.tsv}, validation: {pairs: a.tsv}}}"
    )
    command = ["submit", "one.yaml", "--to", "ray", f"cluster.submit.ray.address={server}"]
    # From another name of the same folder.
    assert main([*command, "--working-dir", "../code"]) == 0
    assert sent == [["a.tsv", "one.yaml"]]
    capsys.readouterr()
    assert main([*command, "--working-dir", ".", "data.train.pairs=[a.tsv,data/b.tsv]"]) == 2
    assert "data.train.pairs: 'data/b.tsv' is not allowed in a job" in capsys.readouterr().err
    assert len(sent) == 1


def test_a_run_without_a_newest_loss_has_a_status(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 2, "bleu": 1.0}\n'
    )
    ours = {"dist_embed": "0.2.0", "run_uri": str(tmp_path)}
    JobServer.answers["GET /api/jobs/one-1"] = (200, details("one-1", "RUNNING", metadata=ours))
    assert call(server, "status", "one-1") == 0
    assert capsys.readouterr().out.endswith("newest line: step 1, loss 2.5000\n")
