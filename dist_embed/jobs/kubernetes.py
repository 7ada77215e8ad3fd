"""A run as a job of Kubernetes: the RayJob that KubeRay is given.

What KubeRay makes of it is read from its source, 1.7.0 (docs/decisions/0043-jobs-of-kubernetes.md);
`tests/unit/test_kubernetes.py` holds the manifest against its published schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

from dist_embed.cluster.stopping import stop_seconds
from dist_embed.config.paths import corpora, is_of_one_process, path_of, places, run_name
from dist_embed.config.schema import Config
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.token_shards import PreparedData
from dist_embed.embedding.settings import Tier
from dist_embed.errors import StorageError, UserError
from dist_embed.installed import own_version, require
from dist_embed.jobs.arrived import SENT_BY
from dist_embed.jobs.configuration import configuration, whole_stop_seconds
from dist_embed.jobs.settings import KEEP_MINUTES, KubernetesSection
from dist_embed.planning.text import made_up
from dist_embed.training.tasks import Train

Object = dict[str, Any]

RAY_VERSION = "2.60.0"  # that `launch/setup.sh` installs in the image
_ANSWER_SECONDS = (10, 60)  # for Kubernetes to be reached, and to answer
USER = 1000  # as in launch/Dockerfile
_MIB = 2**20
# KubeRay refuses longer names of a RayJob, for what it makes of them (constant.go).
_NAME_CHARACTERS = 47
_CONFIG_BYTES = 200 * 2**10  # all annotations of an object may have 256 KiB
_CONFIG_KEY = "dist-embed/config"
_CONFIG_FOLDER = "/etc/dist-embed"

# Beside the workers a pod holds Ray's own processes and its object store, of which little is asked.
_OBJECT_STORE_MIB = 256
_SHARED_MIB = 1024  # /dev/shm: the object store, and what NCCL shares between GPUs of a pod
_RAY_MIB = 1536
# The estimate is within a tenth, and above 95 % of a pod's memory Ray ends workers.
_MEMORY_MARGIN = 1.2
_AFTER_STOP_SECONDS = 60  # that a word to Ray, and its own processes, may take

_NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# In the head pod: asks Kubernetes for pods as the run has use for them, and needs an account there.
_AUTOSCALER = {
    "enableInTreeAutoscaling": True,
    "autoscalerOptions": {
        "securityContext": _NO_PRIVILEGES,
        # Ray's 60 s (2.60, autoscaling_config.py) pass between two starts of the workers, and while
        # the command alone works, as where subwords are learned.
        "idleTimeoutSeconds": 600,
    },
}

# What happens in a pod before it is ended, beside the other processes of its container. The head's
# asks the run to save, as nobody else does when a job is suspended, or a node is drained. SIGTERM
# and not `ray job stop`: KubeRay takes a stopped job for complete, a failed one is tried again. It
# looks every 3 s, and first waits for the pod that follows the job to be done.
_BEFORE_HEAD_ENDS = r"""
driver() { grep -lsz '/[d]ist-embed$' /proc/[0-9]*/cmdline; }
driver >/dev/null || exit 0
for file in $(driver); do kill -TERM "$(cut -d/ -f3 <<<"$file")"; done
while driver >/dev/null; do sleep 1; done
sleep 30
"""
# A worker is not taken away before it has saved. Its process is called as what it is, or as what it
# has been called for (Ray 2.60).
_BEFORE_WORKER_ENDS = r"""
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'its pod ends' \
    --deadline-remaining-seconds {seconds}
while grep -qszE '^ray::(RayTrainWorker|execute)' /proc/[0-9]*/cmdline; do sleep 1; done
"""


def manifest(config: Config) -> Object:
    """The RayJob of a run. Asks the store of ``data.uri`` for what prepared data say, where memory
    is to be estimated or a corpus lies here.

    Raises UserError for what pods do not have, or cannot be spread over them.
    """
    settings, cluster = config.cluster.submit.kubernetes, config.cluster
    if settings.image is None:
        raise UserError(
            "cluster.submit.kubernetes.image: missing; an image with dist_embed, which "
            "launch/Dockerfile makes (docs/clusters.md#with-kubernetes)"
        )
    for workers in (cluster.min_workers, cluster.max_workers):
        if workers % settings.workers_per_pod:
            raise UserError(
                f"cluster.submit.kubernetes.workers_per_pod: {settings.workers_per_pod} is not "
                f"allowed with cluster.num_workers={workers}: as many workers in each pod"
            )
    prepared = _check_places(config, settings)
    memory = settings.memory_gib and int(settings.memory_gib * 2**30)
    worker_bytes = memory or int(_MEMORY_MARGIN * _estimate(config, prepared))
    labels = {
        "app.kubernetes.io/name": "dist-embed",
        "app.kubernetes.io/instance": job_name(config.run.uri),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": job_name(config.run.uri),
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": {"dist-embed/run": config.run.uri},
        },
        "spec": {
            # A shell of the submitting pod reads it unescaped, and one of the head pod again.
            "entrypoint": f"dist-embed train {_CONFIG_FOLDER}/config.yaml",
            "submissionMode": "K8sJobMode",
            "backoffLimit": settings.retries,
            "preRunningDeadlineSeconds": math.ceil(3600 * settings.start_hours),
            **(
                {"activeDeadlineSeconds": math.ceil(3600 * settings.hours)}
                if settings.hours
                else {}
            ),
            # Not `deletionStrategy`: its rules know no job that was stopped, and forbid `suspend`.
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": math.ceil(60 * _keep_minutes(settings)),
            "submitterPodTemplate": _submitter(settings, labels),
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,  # authentication and probes depend on it
                "authOptions": {"mode": "token"},
                **(_AUTOSCALER if cluster.min_workers != cluster.max_workers else {}),
                "headGroupSpec": _head(config, settings, labels),
                "workerGroupSpecs": [_workers(config, settings, labels, worker_bytes)],
            },
        },
    }


def _keep_minutes(settings: KubernetesSection) -> float:
    """The end of `hours` ends the job, and the pods train on until they are taken away."""
    if settings.keep_minutes is not None:
        return settings.keep_minutes
    return 0.0 if settings.hours else KEEP_MINUTES


def job_name(run_uri: str) -> str:
    """Of a run's job: the same for each submission, so that a second one beside it is refused, and
    another for each run. Lower-case letters, digits and hyphens behind a letter, as KubeRay asks.
    """
    digest = hashlib.sha256(run_uri.encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", run_name(run_uri).lower()).strip("-")
    if not words[:1].isalpha():
        words = f"run-{words}".strip("-")
    return f"{words[: _NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


def submit(job: Object) -> None:
    """Hand a manifest to the cluster of the current context of ``kubectl``, or to that whose pod
    this is. Raises UserError with what Kubernetes has against it.
    """
    require("kubernetes")
    from kubernetes import client, config
    from kubernetes.client.rest import urllib3  # whose errors come through

    configuration = client.Configuration()
    try:
        config.load_kube_config(client_configuration=configuration)
    except config.ConfigException as outside:
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            raise UserError(
                f"no Kubernetes cluster is known here: {outside}; `submit --dry-run` prints the "
                "manifest without one"
            ) from None
    configuration.retries = 1
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    try:
        with client.ApiClient(configuration) as api:
            client.CustomObjectsApi(api).create_namespaced_custom_object(
                "ray.io", "v1", namespace, "rayjobs", job,
                field_validation="Strict", _request_timeout=_ANSWER_SECONDS,
            )  # fmt: skip
    except client.ApiException as exc:
        if exc.status == 409:
            raise UserError(
                f"rayjob {name} is there already in namespace {namespace}: a run has one job at a "
                f"time; kubectl --namespace {namespace} delete rayjob {name}"
            ) from None
        raise UserError(f"Kubernetes at {configuration.host}: {_told_by(exc)}") from None
    except urllib3.exceptions.HTTPError as exc:
        raise UserError(f"Kubernetes at {configuration.host} does not answer: {exc}") from None


def _told_by(error: Any) -> str:
    if error.status == 404 and "page not found" in str(error.body):
        return "it knows no RayJob (ray.io/v1): KubeRay is not installed there"
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _check_places(config: Config, settings: KubernetesSection) -> PreparedData | None:
    """Refuse what this machine alone has; returns the prepared data if they were looked for."""
    volume = settings.volume_claim and f"{settings.volume_path}/"

    def is_here(uri: str) -> bool:
        path = path_of(uri)
        if path is None:
            return is_of_one_process(uri)
        return not (volume and path.startswith(volume) and ".." not in path.split("/"))

    for key, uri in places(config):
        if is_here(uri):
            raise _here(key, uri)
    corpora_here = [(key, uri) for key, uri in corpora(config) if is_here(uri)]
    if not corpora_here and settings.memory_gib is not None:
        return None
    prepared = _prepared(config)
    if corpora_here and prepared is None:
        raise _here(*corpora_here[0], ", or prepare the data from here: `dist-embed prepare`")
    return prepared


def _here(key: str, uri: str, otherwise: str = "") -> UserError:
    return UserError(
        f"{key}: {uri!r} is not allowed under Kubernetes, whose pods have no such place; give a "
        f"URL (s3://…), or a path on a volume (cluster.submit.kubernetes.volume_claim){otherwise}"
    )


def _prepared(config: Config) -> PreparedData | None:
    if config.data.uri.startswith("/"):  # on a volume, which this machine does not have
        return None
    try:
        return PreparedData.read(prepared_folder(config.data.uri))
    except FileNotFoundError:
        return None
    except StorageError as exc:
        raise UserError(
            f"data.uri: what is prepared there cannot be read from here: {exc}; with "
            "cluster.submit.kubernetes.memory_gib nothing is asked of it"
        ) from exc


def _estimate(config: Config, prepared: PreparedData | None) -> int:
    """Bytes of host memory of a worker, at most; see `training.needs.host_bytes`."""
    # Of the fewest workers each holds most.
    cluster = config.cluster.model_copy(update={"num_workers": config.cluster.min_workers})
    config = config.model_copy(update={"cluster": cluster})
    bound, memory = config.tokenizer.vocab_size, config.embedding.memory
    tier: Tier | None = None
    if config.cluster.device == "cuda":
        tier = "device" if memory == "auto" else memory  # what `auto` needs at least
    sentences = prepared.splits["train"].sentences if prepared else made_up(config)
    return Train(sentences=sentences).host_bytes(
        config,
        prepared.vocabulary_size if prepared else {"source": bound, "target": bound},
        narrow_products=tier is None and config.train.precision != "fp32",
        tier=tier,
        word_tables=prepared.word_tables if prepared else config.tokenizer.kind == "word",
    )


def _head(config: Config, settings: KubernetesSection, labels: dict[str, str]) -> Object:
    mib = int(settings.head_memory_gib * 1024)
    container = _ray_container(settings, f"{settings.head_cpus}", mib, _BEFORE_HEAD_ENDS)
    # What `ray job stop`, and the deletion of the job, leave the run to end.
    container["env"] += [
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": f"{whole_stop_seconds(config)}"},
        {"name": SENT_BY, "value": own_version()},
    ]
    container["volumeMounts"].append({"name": "config", "mountPath": _CONFIG_FOLDER})
    template = _ray_pod(config, settings, labels, container)
    # The pod's own annotation as a file: neither a shell nor Kubernetes' $(…) reads it, and there
    # is no second object that could be another run's.
    if config.cluster.min_workers != config.cluster.max_workers:
        template["spec"]["automountServiceAccountToken"] = True  # for the autoscaler
    text = configuration(
        config, target="Kubernetes", most_bytes=_CONFIG_BYTES, launcher="ray",
        # Cores are the pods', not the machines' that they are on.
        threads_per_worker=config.cluster.threads_per_worker or settings.cpus_per_worker,
    )  # fmt: skip
    template["metadata"]["annotations"] = {_CONFIG_KEY: text}
    item = {
        "path": "config.yaml",
        "fieldRef": {"fieldPath": f"metadata.annotations['{_CONFIG_KEY}']"},
    }
    template["spec"]["volumes"].append({"name": "config", "downwardAPI": {"items": [item]}})
    return {"rayStartParams": _start(0), "template": template}


def _workers(
    config: Config, settings: KubernetesSection, labels: dict[str, str], worker_bytes: int
) -> Object:
    each, cluster = settings.workers_per_pod, config.cluster
    mib = _RAY_MIB + math.ceil(each * worker_bytes / _MIB)
    before = _BEFORE_WORKER_ENDS.format(seconds=int(stop_seconds(config)))
    container = _ray_container(settings, f"{each * settings.cpus_per_worker}", mib, before)
    if config.cluster.device == "cuda":
        container["resources"]["limits"]["nvidia.com/gpu"] = f"{each}"
    return {
        "groupName": "workers",
        "replicas": cluster.min_workers // each,
        "minReplicas": cluster.min_workers // each,
        "maxReplicas": cluster.max_workers // each,
        "rayStartParams": _start(each),
        "template": _ray_pod(config, settings, labels, container),
    }


def _start(slots: int) -> dict[str, str]:
    # A worker takes one slot, whatever cores it has: no other comes into its memory.
    return {"num-cpus": f"{slots}", "object-store-memory": f"{_OBJECT_STORE_MIB * _MIB}"}


def _ray_pod(
    config: Config, settings: KubernetesSection, labels: dict[str, str], container: Object
) -> Object:
    volumes: list[Object] = [
        {"name": "shared", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHARED_MIB}Mi"}}
    ]
    if settings.volume_claim is not None:
        claim = {"claimName": settings.volume_claim}
        volumes.append({"name": "runs", "persistentVolumeClaim": claim})
        container["volumeMounts"].append({"name": "runs", "mountPath": settings.volume_path})
    spec = {
        **_pod(settings, container),
        "terminationGracePeriodSeconds": whole_stop_seconds(config) + _AFTER_STOP_SECONDS,
        "volumes": volumes,
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _ray_container(settings: KubernetesSection, cpus: str, mib: int, before_end: str) -> Object:
    # KubeRay gives it `ray start`, ports, the token, and probes that ask Ray's agent by HTTP.
    return {
        **_container(settings, "ray", cpus, f"{mib}Mi"),
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "volumeMounts": [{"name": "shared", "mountPath": "/dev/shm"}],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/bash", "-c", before_end]}}},
    }


def _submitter(settings: KubernetesSection, labels: dict[str, str]) -> Object:
    # As KubeRay's own, but for who it runs as, and without the store's secret.
    container = _container(settings, "ray-job-submitter", "500m", "1Gi")
    container.pop("envFrom", None)
    spec = {**_pod(settings, container), "restartPolicy": "Never"}
    return {"metadata": {"labels": labels}, "spec": spec}


def _pod(settings: KubernetesSection, container: Object) -> Object:
    account, pull_secret = settings.service_account, settings.image_pull_secret
    return {
        **({"serviceAccountName": account} if account else {}),
        **({"imagePullSecrets": [{"name": pull_secret}]} if pull_secret else {}),
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def _container(settings: KubernetesSection, name: str, cpus: str, memory: str) -> Object:
    amounts = {"cpu": cpus, "memory": memory}
    secret = settings.secret
    return {
        "name": name,
        "image": settings.image,
        "resources": {"requests": amounts, "limits": dict(amounts)},
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        "securityContext": _NO_PRIVILEGES,
    }
