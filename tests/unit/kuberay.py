"""What KubeRay 1.7.0 has against a RayJob.

`kuberay_rayjob.json` is a reduced form of its published schema (Apache License 2.0): version v1 of
`helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml` at the tag v1.7.0 of ray-project/kuberay,
without descriptions and without the fields that no manifest of ours has, made by

    python -m tests.unit.kuberay ray.io_rayjobs.yaml > tests/unit/kuberay_rayjob.json

Every object is closed there, so that a misspelt field fails. What the schema does not say is in
`complaints`, after `ray-operator/controllers/ray/utils/validation.go` of the same tag.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Object = dict[str, Any]

# Fields of ours, wherever they stand, and some that `complaints` looks at.
_FIELDS = """
    activeDeadlineSeconds allowPrivilegeEscalation annotations authOptions
    automountServiceAccountToken autoscalerOptions backoffLimit capabilities claimName
    clusterSelector command condition containers deletionRules deletionStrategy downwardAPI drop
    emptyDir enableInTreeAutoscaling enableK8sTokenAuth entrypoint env envFrom exec fieldPath
    fieldRef fsGroup groupName headGroupSpec idleTimeoutSeconds image imagePullSecrets items
    jobDeploymentStatus jobStatus labels
    lifecycle limits maxReplicas medium metadata minReplicas mode mountPath name onFailure
    onSuccess path persistentVolumeClaim policy preRunningDeadlineSeconds preStop rayClusterSpec
    rayStartParams rayVersion replicas requests resources restartPolicy runAsGroup runAsNonRoot
    runAsUser seccompProfile secretRef securityContext serviceAccountName
    shutdownAfterJobFinishes sizeLimit spec submissionMode submitterPodTemplate suspend template
    terminationGracePeriodSeconds ttlSeconds ttlSecondsAfterFinished type value volumeMounts
    volumes workerGroupSpecs
"""
FIELDS = frozenset(_FIELDS.split())
# Names and labels (apimachinery, DNS-1035 label, label's value).
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
SCHEMA = Path(__file__).with_name("kuberay_rayjob.json")


def complaints(job: Object) -> list[str]:
    """Empty where KubeRay takes the job."""
    schema = json.loads(SCHEMA.read_text())
    found = jsonschema.Draft7Validator(schema).iter_errors(job)
    return [f"{error.json_path}: {error.message}" for error in found] or list(_beyond_schema(job))


def _beyond_schema(job: Object) -> Iterator[str]:
    spec, name = job["spec"], job["metadata"]["name"]
    cluster = spec.get("rayClusterSpec", {})
    if len(name) > 47 or not NAME.fullmatch(name):
        yield f"name {name!r}"
    if any(not LABEL.fullmatch(value) for value in job["metadata"].get("labels", {}).values()):
        yield "a label"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"):
        yield f"submissionMode {mode!r}"
    for key, least in (
        ("backoffLimit", 0), ("activeDeadlineSeconds", 1), ("ttlSecondsAfterFinished", 0)
    ):  # fmt: skip
        if spec.get(key, least) < least:
            yield f"{key} {spec[key]}"
    if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
        yield "one of clusterSelector and rayClusterSpec"
    if "clusterSelector" in spec and spec.get("backoffLimit"):
        yield "backoffLimit with clusterSelector"
    if not spec.get("shutdownAfterJobFinishes"):
        if spec.get("suspend") or spec.get("ttlSecondsAfterFinished"):
            yield "suspend or ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    elif spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules with shutdownAfterJobFinishes"
    yield from _deletion(spec.get("deletionStrategy"))
    token = cluster.get("authOptions", {}).get("mode") == "token"
    if token and tuple(map(int, cluster.get("rayVersion", "0.0").split(".")[:2])) < (2, 52):
        yield f"authOptions with rayVersion {cluster.get('rayVersion')}"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth for a RayJob"
    for group in cluster.get("workerGroupSpecs", []):
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if least is None or most is None or not 0 <= least <= most:
            yield f"replicas of {group['groupName']}: {least} to {most}"


def _deletion(strategy: Object | None) -> Iterator[str]:
    """The schema's rules in the language CEL, which JSON schema does not have."""
    if strategy is None:
        return
    before = [key in strategy for key in ("onSuccess", "onFailure")]
    if any(before) and "deletionRules" in strategy:
        yield "onSuccess or onFailure with deletionRules"
    if not all(before) and "deletionRules" not in strategy:
        yield "neither deletionRules nor both onSuccess and onFailure"
    for rule in strategy.get("deletionRules", []):
        if ("jobStatus" in rule["condition"]) == ("jobDeploymentStatus" in rule["condition"]):
            yield "one of jobStatus and jobDeploymentStatus"


def reduced(schema: Object) -> Object:
    """A schema of Kubernetes as JSON schema, closed, with `FIELDS` only."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], "pattern": schema["pattern"]}
    kept = {key: schema[key] for key in ("type", "enum", "minimum", "minItems") if key in schema}
    if "properties" in schema:
        kept["properties"] = {
            name: reduced(value) for name, value in schema["properties"].items() if name in FIELDS
        }
        kept["additionalProperties"] = False
        if "required" in schema:
            assert FIELDS.issuperset(schema["required"]), schema["required"]
            kept["required"] = schema["required"]
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = reduced(schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = reduced(schema["items"])
    return kept


def of_crd(text: str) -> Object:
    """The reduced schema of RayJobs of a file of KubeRay's."""
    versions = {version["name"]: version for version in yaml.safe_load(text)["spec"]["versions"]}
    properties = versions["v1"]["schema"]["openAPIV3Schema"]["properties"]
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    metadata = {"name": {"type": "string"}, "namespace": {"type": "string"}}
    return {
        "properties": {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": "RayJob"},
            "metadata": {
                "type": "object",
                "properties": metadata | {"labels": texts, "annotations": texts},
                "additionalProperties": False,
                "required": ["name"],
            },
            "spec": reduced(properties["spec"]),
        },
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
    }


if __name__ == "__main__":
    print(json.dumps(of_crd(Path(sys.argv[1]).read_text()), indent=1))
