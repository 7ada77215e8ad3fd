"""The manifest that Kubernetes gets, against what KubeRay takes; nothing is run on a cluster."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem

from dist_embed.cli.main import main
from dist_embed.config.load import config_from_dict, load_config
from dist_embed.config.schema import Config
from dist_embed.errors import UserError
from dist_embed.jobs.as_yaml import as_yaml
from dist_embed.jobs.kubernetes import RAY_VERSION, job_name, manifest, submit
from tests.unit.kuberay import complaints
from tests.unit.small_corpus import Prepared

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]
Damage = Callable[[Object], Any]


class _Store(MemoryFileSystem):
    """Stands in for a store of objects, which pods reach too."""

    protocol = "teststore"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("teststore://", "memory://")))


fsspec.register_implementation("teststore", _Store)


def config_of(
    uri: str = "s3://bucket/one", kubernetes: Object | None = None, data: Object | None = None,
    memory_gib: float | None = 1.0, **cluster: Any,
) -> Config:  # fmt: skip
    settings = {"image": "registry/dist_embed:1", "memory_gib": memory_gib, **(kubernetes or {})}
    return config_from_dict({
        "run": {"uri": uri}, "data": data or {"synthetic": {}}, "train": {"max_steps": 9},
        "checkpoint": {"drain_seconds": 30.0},
        "cluster": {"num_workers": 4, "submit": {"kubernetes": settings}, **cluster},
    })  # fmt: skip


def at(job: Object, path: str) -> Any:
    """What stands at ``ray:image`` or the like; None: nothing."""
    spec = job["spec"]
    head, workers = (
        spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"][0]
    )  # fmt: skip
    first, *others = path.split(":")
    place: Any = {
        "job": spec, "head": head, "workers": workers, "pod": head["template"]["spec"],
        "ray": workers["template"]["spec"]["containers"][0],
        "submitter": spec["submitterPodTemplate"]["spec"],
    }[first]  # fmt: skip
    for name in others:
        place = place.get(name) if isinstance(place, dict) else place
    return place


def test_the_head_knows_which_version_sent_the_job() -> None:
    environment = at(manifest(config_of("s3://bucket/one")), "head")["template"]["spec"][
        "containers"
    ][0]["env"]
    assert {"name": "DIST_EMBED_SENT_BY", "value": version("dist_embed")} in environment


def mounted_configuration(job: Object) -> str:
    """What the head pod sees as a file."""
    volumes = {volume["name"]: volume for volume in at(job, "pod")["volumes"]}
    item = volumes["config"]["downwardAPI"]["items"][0]
    key = re.fullmatch(r"metadata\.annotations\['(.*)'\]", item["fieldRef"]["fieldPath"])
    assert key
    (mount,) = [
        mount for mount in at(job, "pod")["containers"][0]["volumeMounts"]
        if mount["name"] == "config"
    ]  # fmt: skip
    assert job["spec"]["entrypoint"].split()[-1] == f"{mount['mountPath']}/{item['path']}"
    return at(job, "head")["template"]["metadata"]["annotations"][key[1]]


EVERY = {
    "namespace": "team", "secret": "store", "workers_per_pod": 2, "cpus_per_worker": 3,
    "memory_gib": 0.5, "hours": 0.51, "start_hours": 0.1, "retries": 0, "keep_minutes": 0.0,
    "head_cpus": 5, "head_memory_gib": 2.5, "service_account": "trainer",
    "image_pull_secret": "registry", "volume_claim": "runs", "volume_path": "/mnt/x",
}  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "kubernetes", "cluster"),
    [
        ("s3://bucket/one", {}, {}),
        ("s3://bucket/one", EVERY, {"device": "cuda"}),
        ("s3://b/" + 99 * "long", {}, {}),
        ("s3://b/7", {}, {}),
        ("gs://b/Größe {a} $HOME `id` 'x'/", {}, {}),
        ("s3://b", {}, {}),
    ],
)
def test_kuberay_takes_it(uri: str, kubernetes: Object, cluster: Object) -> None:
    job = manifest(config_of(uri, kubernetes, **cluster))
    assert complaints(job) == []
    assert yaml.safe_load(as_yaml(job)) == job


def rules(*conditions: Object, **others: Any) -> Damage:
    strategy = {"deletionRules": [{"policy": "DeleteSelf", "condition": c} for c in conditions]}
    return lambda spec: spec.update(
        shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0,
        deletionStrategy={**strategy, **others},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda spec: spec.update(backofLimit=3), "backofLimit"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"].update(replicas=1), "replicas"),
        (lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(x=1), "x"),
        (lambda spec: spec["submitterPodTemplate"]["spec"].pop("containers"), "containers"),
        (lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="on"), "'on'"),
        (lambda spec: spec.update(preRunningDeadlineSeconds=0), "preRunning"),
        (lambda spec: spec.update(activeDeadlineSeconds=0), "activeDeadlineSeconds 0"),
        (lambda spec: spec.update(submissionMode="K8SJobMode"), "submissionMode 'K8SJobMode'"),
        (lambda spec: spec.update(backoffLimit=-1), "backoffLimit -1"),
        (lambda spec: (spec.pop("rayClusterSpec"), spec.update(clusterSelector={"a": "b"})),
         "backoffLimit with clusterSelector"),
        (lambda spec: spec.update(shutdownAfterJobFinishes=False), "without shutdownAfter"),
        (lambda spec: spec["rayClusterSpec"].update(rayVersion="2.51.0"), "rayVersion 2.51.0"),
        (lambda spec: spec["rayClusterSpec"]["authOptions"].update(enableK8sTokenAuth=True),
         "enableK8sTokenAuth"),
        (lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplicas=9),
         "replicas of workers"),
        (rules({"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Failed"}), "one of jobStatus"),
        (rules({"ttlSeconds": 9}), "one of jobStatus"),
        (rules({"jobStatus": "STOPPED"}), "STOPPED"),
        (rules({"jobStatus": "FAILED"}, onSuccess={"policy": "DeleteSelf"}), "with deletionRules"),
        (lambda spec: spec.update(deletionStrategy={}), "neither deletionRules"),
    ],
)  # fmt: skip
def test_what_kuberay_does_not_take_is_found(damage: Damage, complaint: str) -> None:
    job = manifest(config_of())
    damage(job["spec"])
    assert complaint in "\n".join(complaints(job))


@pytest.mark.parametrize(
    ("kubernetes", "cluster", "path", "value"),
    [
        ({"image": "i:2"}, {}, "ray:image", "i:2"),
        ({"secret": "s"}, {}, "ray:envFrom", [{"secretRef": {"name": "s"}}]),
        ({"workers_per_pod": 2}, {}, "workers:replicas", 2),
        ({"workers_per_pod": 2}, {}, "workers:rayStartParams:num-cpus", "2"),
        ({"cpus_per_worker": 3, "workers_per_pod": 2}, {}, "ray:resources:limits:cpu", "6"),
        ({"workers_per_pod": 2}, {"device": "cuda"}, "ray:resources:limits:nvidia.com/gpu", "2"),
        ({"memory_gib": 2.0}, {}, "ray:resources:limits:memory", "3584Mi"),
        ({"memory_gib": 2.0, "workers_per_pod": 2}, {}, "ray:resources:requests:memory", "5632Mi"),
        ({"hours": 0.5}, {}, "job:activeDeadlineSeconds", 1800),
        ({"start_hours": 0.5}, {}, "job:preRunningDeadlineSeconds", 1800),
        ({"retries": 7}, {}, "job:backoffLimit", 7),
        ({"keep_minutes": 1.0}, {}, "job:ttlSecondsAfterFinished", 60),
        # Till then pods train on, which KubeRay does not end with the job.
        ({"hours": 2.0}, {}, "job:ttlSecondsAfterFinished", 0),
        ({"hours": 2.0, "keep_minutes": 1.0}, {}, "job:ttlSecondsAfterFinished", 60),
        ({"service_account": "a"}, {}, "pod:serviceAccountName", "a"),
        ({"image_pull_secret": "a"}, {}, "pod:imagePullSecrets", [{"name": "a"}]),
    ],
)
def test_a_setting_is_a_field(kubernetes: Object, cluster: Object, path: str, value: Any) -> None:
    assert at(manifest(config_of(kubernetes=kubernetes, **cluster)), path) == value
    assert at(manifest(config_of()), path) != value


def test_the_head_has_memory_and_cores_of_its_own() -> None:
    job = manifest(config_of(kubernetes={"head_cpus": 5, "head_memory_gib": 2.5}))
    amounts = {"cpu": "5", "memory": "2560Mi"}
    (container,) = at(job, "pod")["containers"]
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert at(job, "head")["rayStartParams"]["num-cpus"] == "0"  # no worker comes there


@pytest.mark.parametrize("given", [0, 7])
def test_data_are_prepared_by_as_many_tasks_as_there_are_slots_unless_fewer_are_given(
    given: int,
) -> None:
    # In a job RAY_ADDRESS is set, so these are tasks in the workers' pods, whatever the head has.
    data = {"synthetic": {}, "num_processes": given}
    text = yaml.safe_load(mounted_configuration(manifest(config_of(data=data))))
    assert text["data"]["num_processes"] == given


def test_a_range_of_workers_is_one_of_pods_which_come_as_there_is_room() -> None:
    job = manifest(config_of(kubernetes={"workers_per_pod": 2}, num_workers={"min": 2, "max": 8}))
    assert complaints(job) == []
    pods = [at(job, f"workers:{key}") for key in ("replicas", "minReplicas", "maxReplicas")]
    assert pods == [1, 1, 4]
    assert at(job, "job:rayClusterSpec:enableInTreeAutoscaling") is True
    assert at(job, "pod:automountServiceAccountToken") is True
    assert at(job, "workers")["template"]["spec"]["automountServiceAccountToken"] is False
    assert at(manifest(config_of()), "job:rayClusterSpec:enableInTreeAutoscaling") is None
    with pytest.raises(UserError, match=r"workers_per_pod: 2 is not allowed .*num_workers=3"):
        manifest(config_of(kubernetes={"workers_per_pod": 2}, num_workers={"min": 3, "max": 4}))


def test_no_pod_needs_root_or_what_it_does_not_use() -> None:
    job = manifest(config_of(kubernetes={"secret": "s"}))
    pods = [at(job, "pod"), at(job, "workers")["template"]["spec"], at(job, "submitter")]
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
    assert "envFrom" not in at(job, "submitter")["containers"][0]


def test_a_pod_is_given_the_time_that_a_run_needs_to_save() -> None:
    job = manifest(config_of())
    grace = at(job, "pod:terminationGracePeriodSeconds")
    assert grace == at(job, "workers")["template"]["spec"]["terminationGracePeriodSeconds"] == 240
    (container,) = at(job, "pod")["containers"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "180"} in container["env"]
    assert "--deadline-remaining-seconds 120" in at(job, "ray:lifecycle:preStop:exec:command")[-1]


def test_the_run_is_that_of_the_configuration_with_the_pods_cores(tmp_path: Path) -> None:
    uri = "s3://b/größer $(RAY_VERSION) $HOME `id` \\ 'x'"
    config = config_of(uri, {"cpus_per_worker": 3}, address="ray://elsewhere:1", launcher="local")
    job = yaml.safe_load(as_yaml(manifest(config)))
    path = tmp_path / "config.yaml"
    path.write_text(mounted_configuration(job))
    cluster = config.cluster.model_copy(
        update={"launcher": "ray", "address": None, "threads_per_worker": 3}
    )
    assert load_config(path) == config.model_copy(update={"cluster": cluster})


def test_the_entry_point_means_the_same_to_any_shell() -> None:
    words = manifest(config_of("s3://b/$HOME 'x'"))["spec"]["entrypoint"].split(" ")
    assert words == [shlex.quote(word) for word in words]


def test_a_run_has_one_name_and_no_other_has_it() -> None:
    names = [
        job_name(uri)
        for uri in ("s3://a/one", "s3://b/one", "s3://b/One", "s3://b/7", "s3://b/é", "s3://b/-")
    ]
    assert len({*names}) == len(names)
    assert names[0] == job_name("s3://a/one")
    assert re.fullmatch("one-[0-9a-f]{8}", names[0])


def test_the_versions_are_those_of_the_image() -> None:
    assert f"ray=={RAY_VERSION}" in (ROOT / "launch/constraints/common.txt").read_text().split()


def test_memory_is_estimated_from_prepared_data_or_the_bound(prepared: Prepared) -> None:
    def gib_of(**more: Any) -> float:
        memory = at(manifest(config_of(memory_gib=None, **more)), "ray:resources:limits:memory")
        return int(memory.removesuffix("Mi")) / 1024

    many = gib_of(data={"synthetic": {}, "uri": "teststore://kube/none"})
    files = fsspec.filesystem("teststore")
    files.put(prepared.uri, "/kube/data", recursive=True)
    few = gib_of(data={"synthetic": {}, "uri": "teststore://kube/data"})
    assert 2 < few < many < 4
    assert few < gib_of(data={"synthetic": {}, "uri": "teststore://kube/data"}, device="cuda")


def test_memory_of_made_up_data_is_by_as_many_pairs_as_are_made() -> None:
    def mib_of(sentences: int) -> int:
        data = {"words": {"sentences": sentences, "length": 5}, "uri": "teststore://kube/none"}
        job = manifest(config_of(memory_gib=None, data=data))
        return int(at(job, "ray:resources:limits:memory").removesuffix("Mi"))

    few, many, more = map(mib_of, (1000, 500_000, 50_000_000))
    assert few + 30 < many == more


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (lambda: config_of(kubernetes={"image": None}), r"kubernetes\.image: missing.*Dockerfile"),
        (lambda: config_of(kubernetes={"workers_per_pod": 3}),
         r"workers_per_pod: 3 is not allowed with cluster\.num_workers=4"),
        (lambda: config_of("/home/me/run"), r"run\.uri: '/home/me/run' is not allowed"),
        (lambda: config_of("file:///home/me/run"), r"run\.uri: 'file:///home/me/run' is not"),
        (lambda: config_of("memory://run"), r"run\.uri: 'memory://run' is not allowed"),
        (lambda: config_of(data={"synthetic": {}, "uri": "memory://d"}), r"data\.uri: 'memory://d"),
        (lambda: config_of("/mnt/dist_embed/run"), r"run\.uri: .* is not allowed"),
        (lambda: config_of("/mnt/x/../run", {"volume_claim": "c", "volume_path": "/mnt/x"}),
         r"run\.uri: .* is not allowed"),
        (lambda: config_of(data={"synthetic": {}, "uri": "/here"}), r"data\.uri: '/here' is not"),
        (lambda: config_of(data={"train": {"source": ["s3://b/a", "a.en"], "target": "s3://b/x"},
                                 "uri": "teststore://kube/none"}),
         r"data\.train\.source: 'a\.en' is not allowed .* or prepare the data from here"),
        (lambda: config_of(data={"synthetic": {}, "uri": "none://a/b"}, memory_gib=None),
         r"data\.uri: what is prepared .*memory_gib nothing is asked of it"),
        (lambda: config_of(
            data={"train": {"pairs": [f"s3://b/{i:0999}" for i in range(250)]}}),
         r"a configuration of .* bytes cannot be sent to Kubernetes; at most 204,800"),
    ],
)  # fmt: skip
def test_what_cannot_run_in_pods_is_refused(config: Callable[[], Config], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        manifest(config())


def test_vectors_that_lie_here_are_refused() -> None:
    values = config_of().model_dump()
    values["embedding"]["tables"]["source"] = {"pretrained": {"uri": "/here/v.vec"}}
    with pytest.raises(UserError, match=r"tables\.source\.pretrained\.uri: '/here/v\.vec'"):
        manifest(config_from_dict(values))


def test_paths_on_a_volume_and_corpora_of_prepared_data_are_taken(prepared: Prepared) -> None:
    claim = {"volume_claim": "runs", "volume_path": "/mnt/x"}
    job = manifest(config_of("/mnt/x/run", claim, {"train": {"pairs": "/mnt/x/a.tsv"}}))
    for pod in (at(job, "pod"), at(job, "workers")["template"]["spec"]):
        assert {"name": "runs", "mountPath": "/mnt/x"} in pod["containers"][0]["volumeMounts"]
        claims = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
        assert {"claimName": "runs"} in claims
    fsspec.filesystem("teststore").put(prepared.uri, "/kube/there", recursive=True)
    manifest(config_of(data={"train": {"pairs": "a.tsv"}, "uri": "teststore://kube/there"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("namespace", "Team"), ("namespace", 64 * "a"), ("secret", "a_b"), ("secret", ""),
        ("image", "a b"), ("volume_path", "mnt"), ("volume_path", "/mnt/"), ("retries", -1),
        ("service_account", "-a"), ("image_pull_secret", "A"), ("hours", 0.0), ("start_hours", 0.0),
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"cluster\.submit\.kubernetes\.{key}"):
        config_of(kubernetes={key: value})


CONFIG = """\
run: {uri: s3://bucket/one}
data: {synthetic: {}}
train: {max_steps: 9}
cluster: {submit: {to: kubernetes, kubernetes: {image: "i:1", memory_gib: 1.0, namespace: team}}}
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return ["submit", str(path)]


def test_a_dry_run_prints_the_manifest_and_needs_no_client(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "verysecret")
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "verysecret" not in said
    job = yaml.safe_load(said)
    assert (job["kind"], job["metadata"]["namespace"]) == ("RayJob", "team")
    assert main([*command, "--follow", "--dry-run"]) == 2
    assert "kubectl logs --follow" in capsys.readouterr().err


Answer = tuple[int, Any]


class _Server(ThreadingHTTPServer):
    """What stands in for a cluster: gives one answer, and keeps what it was sent."""

    answer: Answer = (201, {})
    sent: list[tuple[str, Object]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.sent.append((self.path, json.loads(body)))
        code, answer = self.server.answer
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        del arguments


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    pytest.importorskip("kubernetes")
    with _Server(("127.0.0.1", 0), _Handler) as found:
        found.sent = []
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        use_context(tmp_path, monkeypatch, f"http://127.0.0.1:{found.server_port}")
        yield found
        found.shutdown()
        thread.join(20)


def use_context(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    path = folder / "kube.yaml"
    if address:
        path.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }))  # fmt: skip
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_a_job_is_handed_to_the_cluster(
    server: _Server, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    ((path, job),) = server.sent
    assert path == "/apis/ray.io/v1/namespaces/team/rayjobs?fieldValidation=Strict"
    assert complaints(job) == []
    name = job_name("s3://bucket/one")
    assert capsys.readouterr().out == f"rayjob {name} in namespace team: s3://bucket/one\n"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((409, {"message": "exists"}), r"rayjob one-\w+ is there already in namespace default"),
        ((404, "404 page not found\n"), "KubeRay is not installed there"),
        ((404, {"message": 'namespaces "default" not found'}), 'namespaces "default" not found'),
        ((403, {"message": "rayjobs.ray.io is forbidden"}), "rayjobs.ray.io is forbidden"),
        ((500, "<html>"), r"500 Internal Server Error"),
    ],
)
def test_what_the_cluster_has_against_it_is_told(
    server: _Server, answer: Answer, complaint: str
) -> None:
    server.answer = answer
    with pytest.raises(UserError, match=complaint):
        submit(manifest(config_of()))


def test_a_cluster_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes")
    use_context(tmp_path, monkeypatch, None)
    with pytest.raises(UserError, match=r"no Kubernetes cluster is known here.*--dry-run"):
        submit(manifest(config_of()))
    use_context(tmp_path, monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"Kubernetes at http://127\.0\.0\.1:1 does not answer"):
        submit(manifest(config_of()))


# In a space of process numbers of its own: nothing else on this machine is asked to end.
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
CAN_BE_ALONE = (
    shutil.which("unshare") is not None
    and subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
)
STAND_IN = """\
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    time.sleep(0.5)
    (folder / "saved").touch()
    os._exit(143)
signal.signal(signal.SIGTERM, end)
(folder / "runs").touch()
time.sleep(60)
"""


@pytest.mark.skipif(not CAN_BE_ALONE, reason="unshare gives no processes of their own here")
def test_before_the_head_ends_its_run_is_asked_to_save(tmp_path: Path) -> None:
    program = tmp_path / "dist-embed"
    program.write_text(STAND_IN)
    (container,) = at(manifest(config_of()), "pod")["containers"]
    bash, option, before = container["lifecycle"]["preStop"]["exec"]["command"]
    script = (
        f'python3 "{program}" "{tmp_path}" & run=$!\n'
        f'until [ -e "{tmp_path}/runs" ]; do sleep 0.1; done\n'
        f"{bash} {option} {shlex.quote(before.replace('sleep 30', ''))}\n"
        f'[ -e "{tmp_path}/saved" ] && wait $run\n'
    )
    done = subprocess.run([*ALONE, "bash", "-c", script], timeout=60, check=False)
    assert done.returncode == 143
    # And nothing is waited for where there is none.
    waits = re.sub(r"sleep \d+", "exit 9", before)
    subprocess.run([*ALONE, bash, option, waits], timeout=60, check=True)


@pytest.mark.skipif(not CAN_BE_ALONE, reason="unshare gives no processes of their own here")
@pytest.mark.parametrize("title", ["ray::RayTrainWorker", "ray::execute._setup"])
def test_before_a_pod_ends_its_workers_have_ended(title: str, tmp_path: Path) -> None:
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$*" >"{tmp_path}/told"\n')
    (tmp_path / "ray").chmod(0o755)
    bash, option, before = at(manifest(config_of()), "ray:lifecycle:preStop:exec:command")
    script = (
        f"(exec -a ray::IDLE sleep 60) &\n"
        f"(exec -a {title} bash -c 'sleep 1.5; touch {tmp_path}/late') &\n"
        f"until grep -qsz ^{title} /proc/[0-9]*/cmdline; do sleep 0.1; done\n"
        f"{bash} {option} {shlex.quote(before)}\n[ -e {tmp_path}/late ]\n"
    )
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run([*ALONE, "bash", "-c", script], env=env, timeout=60, check=True)
    told = (tmp_path / "told").read_text()
    assert told.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert told.endswith(" --deadline-remaining-seconds 120\n")
