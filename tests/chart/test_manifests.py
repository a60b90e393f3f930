"""What the chart makes is valid for each version of Kubernetes, fits together, and asks for no more than it needs."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34"]
KUEUE = "kueue.x-k8s.io"
# What Kubernetes' own schemas do not know. Kueue takes these fields of a queue, and this chart sets no other.
LOCAL_QUEUE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"enum": [f"{KUEUE}/v1beta1", f"{KUEUE}/v1beta2"]},
        "kind": {"const": "LocalQueue"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["clusterQueue"],
            "properties": {"clusterQueue": {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*)$"}},
        },
    },
}


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


def one(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (o for o in of_kind(objects, kind) if o["metadata"]["name"] == name)
    return found


def pod_specs(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name: the pods, and the templates of pods."""
    pods = {o["metadata"]["name"]: o["spec"] for o in of_kind(objects, "Pod")}
    return pods | {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in of_kind(objects, "Deployment")}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_for_each_version(objects: list[dict[str, Any]], version: str) -> None:
    for found in objects:
        if found["apiVersion"].startswith(KUEUE):
            jsonschema.validate(found, LOCAL_QUEUE)
        else:
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_validator_sees_a_field_that_there_is_not(objects: list[dict[str, Any]], version: str) -> None:
    deployment = of_kind(objects, "Deployment")[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        kubernetes_validate.validate(deployment, version, strict=True)


def test_the_helm_versions_of_kubernetes_are_those_that_are_validated(helm: Any, chart: Path) -> None:
    for version, taken in (("v1.29.9", False), *((f"v{version}.0", True) for version in VERSIONS)):
        done = helm("template", "tuneport", str(chart), f"--kube-version={version}")
        assert (done.returncode == 0) == taken, done.stderr


def test_names_are_unique_and_labels_are_helms_own(objects: list[dict[str, Any]]) -> None:
    names = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    for found in objects:
        labels = found["metadata"]["labels"]
        assert found["metadata"]["namespace"] == "team"
        assert labels["app.kubernetes.io/name"] == "tuneport" and labels["app.kubernetes.io/instance"] == "tuneport"
        assert labels["app.kubernetes.io/managed-by"] == "Helm" and labels["app.kubernetes.io/component"]
        assert re.fullmatch(r"tuneport-\d+\.\d+\.\d+", labels["helm.sh/chart"]) and labels["app.kubernetes.io/version"]


def test_a_long_name_of_a_release_leads_to_valid_names(helm: Any, chart: Path) -> None:
    done = helm("template", "fine-tuning-of-the-platform-team-in-the-long-run-xyz", str(chart), "--namespace=team")
    assert done.returncode == 0, done.stderr
    for found in filter(None, yaml.safe_load_all(done.stdout)):
        name = found["metadata"]["name"]
        assert len(name) <= 63 and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), name


def test_every_pod_keeps_to_the_pod_security_standard_restricted(objects: list[dict[str, Any]]) -> None:
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    specs = pod_specs(objects)
    assert set(specs) == {"tuneport-mlflow", "tuneport-test-mlflow", "tuneport-test-launcher"}
    for name, spec in specs.items():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"]), name
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,  # beyond the standard
                "capabilities": {"drop": ["ALL"]},
            }
            assert "hostPort" not in json.dumps(container) and container["resources"]["limits"]["memory"], name


def test_only_the_launcher_has_a_way_to_the_kubernetes_api(objects: list[dict[str, Any]]) -> None:
    specs = pod_specs(objects)
    with_token = {name for name, spec in specs.items() if spec.get("automountServiceAccountToken", True)}
    assert with_token == {"tuneport-test-launcher"}
    (binding, *rest) = of_kind(objects, "RoleBinding")
    account = specs["tuneport-test-launcher"]["serviceAccountName"]
    assert binding["roleRef"]["name"] == of_kind(objects, "Role")[0]["metadata"]["name"]
    for found in (binding, *rest):
        assert found["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "team"}]
    assert not of_kind(objects, "ClusterRole") and not of_kind(objects, "ClusterRoleBinding")


def test_an_account_that_is_there_already_gets_the_launchers_rights_and_no_more(render: Any, chart: Path) -> None:
    made = render(chart / "values.yaml")
    assert [b["roleRef"]["name"] for b in of_kind(made, "RoleBinding")] == ["tuneport-launcher", "pipeline-runner"]
    assert one(made, "ServiceAccount", "tuneport-launcher")
    given = render(chart / "values.yaml", "launcher.serviceAccount.create=false", "launcher.serviceAccount.name=editor")
    assert [b["roleRef"]["name"] for b in of_kind(given, "RoleBinding")] == ["tuneport-launcher"]
    assert [a["metadata"]["name"] for a in of_kind(given, "ServiceAccount")] == ["tuneport-mlflow"]
    without = render(chart / "values.yaml", "launcher.kubeflowRole.name=")
    assert len(of_kind(without, "RoleBinding")) == 1


def test_secrets_are_referred_to_and_never_made(objects: list[dict[str, Any]], values: Path) -> None:
    assert not of_kind(objects, "Secret")
    environment = one(objects, "Deployment", "tuneport-mlflow")["spec"]["template"]["spec"]["containers"][0]["env"]
    secret = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in environment if "valueFrom" in e}
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    wanted = {"MLFLOW_BACKEND_STORE_URI": {"name": "mlflow-database", "key": "uri"}}
    wanted |= {key: {"name": "mlflow-artifacts", "key": key} for key in keys}
    assert secret == (wanted if values.stem == "values-production" else {})


def test_what_pods_mount_and_refer_to_is_made_too(objects: list[dict[str, Any]]) -> None:
    claims = {o["metadata"]["name"] for o in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {o["metadata"]["name"] for o in of_kind(objects, "ServiceAccount")} | {"default-editor"}
    for spec in pod_specs(objects).values():
        used = {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
        assert used <= claims
        assert spec.get("serviceAccountName", "default-editor") in accounts
        mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
        assert mounted == {v["name"] for v in spec["volumes"]}
    assert all(
        o["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        for o in of_kind(objects, "PersistentVolumeClaim")
    )


def test_mlflow_has_a_volume_only_where_something_is_kept_there(render: Any, chart: Path) -> None:
    rule = "networkPolicy.mlflowEgress[0].ports[0].port=443"
    database, artifacts = "mlflow.database.existingSecret=db", "mlflow.artifacts.destination=s3://bucket"
    for settings, volume in (([], True), ([database], True), ([artifacts], True), ([database, artifacts], False)):
        objects = render(chart / "values.yaml", rule, *settings)
        deployment = one(objects, "Deployment", "tuneport-mlflow")["spec"]
        claims = [o["metadata"]["name"] for o in of_kind(objects, "PersistentVolumeClaim")]
        assert ("tuneport-mlflow" in claims) == volume
        assert ("fsGroup" in deployment["template"]["spec"]["securityContext"]) == volume
        assert (deployment.get("strategy") == {"type": "Recreate"}) == volume


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """As the API server matches labels; an empty selector takes everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    known = {"Exists": lambda key: key in labels, "DoesNotExist": lambda key: key not in labels}
    return all(known[e["operator"]](e["key"]) for e in selector.get("matchExpressions", []))


def may_connect(
    policies: list[dict[str, Any]], source: dict[str, str], target: dict[str, str], port: int, namespace: str = "team"
) -> bool:
    """Whether policies of the namespace `team` let one of its pods connect to a pod of it, or of another namespace."""

    def peer(found: dict[str, Any], labels: dict[str, str]) -> bool:
        spaces = found.get("namespaceSelector")
        here = (
            selects(spaces, {"kubernetes.io/metadata.name": namespace}) if spaces is not None else namespace == "team"
        )
        return here and selects(found.get("podSelector", {}), labels)

    def allowed(direction: str, of: dict[str, str], other: dict[str, str]) -> bool:
        holding = [
            p["spec"]
            for p in policies
            if direction.capitalize() in p["spec"]["policyTypes"] and selects(p["spec"]["podSelector"], of)
        ]
        rules = itertools.chain.from_iterable(spec.get(direction) or [] for spec in holding)
        return not holding or any(
            any(p["port"] == port for p in rule.get("ports", [{"port": port}]))
            and any(
                peer(p, other) for p in rule.get("to" if direction == "egress" else "from", [{"namespaceSelector": {}}])
            )
            for rule in rules
        )

    return allowed("egress", source, target) and (namespace != "team" or allowed("ingress", target, source))


LAUNCHER = {"tuneport.dev/network": "tuneport", "pipelines.kubeflow.org/v2_component": "true"}
WORKER = {"tuneport.dev/network": "tuneport", "training.kubeflow.org/job-name": "finetune-r1"}
NODE = {"tuneport.dev/network": "tuneport", "jobset.sigs.k8s.io/jobset-name": "finetune-r1"}
STRANGER = {"app": "notebook"}


def policies_and_server(objects: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    server = one(objects, "Deployment", "tuneport-mlflow")["spec"]["template"]["metadata"]["labels"]
    return of_kind(objects, "NetworkPolicy"), server


def test_the_network_lets_through_what_a_run_needs_and_nothing_else(objects: list[dict[str, Any]]) -> None:
    policies, server = policies_and_server(objects)
    for source in (LAUNCHER, WORKER, NODE, STRANGER):
        assert may_connect(policies, source, server, 5000)
        assert not may_connect(policies, source, server, 22)
        assert may_connect(policies, source, {"k8s-app": "kube-dns"}, 53, "kube-system")
    assert may_connect(policies, WORKER, WORKER, 23456) and may_connect(policies, NODE, NODE, 29500)
    assert may_connect(policies, LAUNCHER, {"app": "minio"}, 9000, "kubeflow")
    assert may_connect(policies, LAUNCHER, {}, 6443, "kube-system")
    refused = [
        (LAUNCHER, STRANGER, 8080, "team"),
        (LAUNCHER, {}, 80, "elsewhere"),
        (LAUNCHER, WORKER, 23456, "team"),
        (WORKER, LAUNCHER, 8080, "team"),
        (WORKER, {"app": "minio"}, 9000, "kubeflow"),
        (WORKER, {}, 443, "elsewhere"),
        (NODE, {}, 6443, "kube-system"),
        (STRANGER, WORKER, 23456, "team"),
        (server, STRANGER, 8080, "team"),
        (server, {}, 443, "elsewhere"),
    ]
    for source, target, port, namespace in refused:
        assert not may_connect(policies, source, target, port, namespace), (source, target, port, namespace)


def test_machines_without_a_shared_volume_reach_the_object_store(render: Any, chart: Path) -> None:
    objects = render(chart / "values.yaml", "sharedVolume.enabled=false")
    assert "tuneport-shared" not in [o["metadata"]["name"] for o in of_kind(objects, "PersistentVolumeClaim")]
    policies = of_kind(objects, "NetworkPolicy")
    for worker in (WORKER, NODE):
        assert may_connect(policies, worker, {"app": "minio"}, 9000, "kubeflow")
        assert may_connect(policies, worker, {"app": "seaweedfs"}, 8333, "kubeflow")
        assert may_connect(policies, worker, {}, 443, "elsewhere")
        assert not may_connect(policies, worker, {}, 6443, "kube-system")
        assert not may_connect(policies, worker, {}, 8888, "kubeflow")


def test_mlflow_in_production_reaches_its_database_and_its_store(render: Any, chart: Path) -> None:
    policies, server = policies_and_server(render(chart / "values-production.yaml"))
    assert may_connect(policies, server, {}, 5432, "databases") and may_connect(policies, server, {}, 9000, "storage")
    (policy,) = (p for p in policies if p["metadata"]["name"] == "tuneport-mlflow")
    peers = policy["spec"]["ingress"][0]["from"]
    assert [p for p in peers if "namespaceSelector" in p and not p.get("podSelector")] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}
    ]


def test_what_is_turned_off_is_not_made(render: Any, chart: Path) -> None:
    off = ("sharedVolume.enabled=false", "mlflow.enabled=false", "networkPolicy.enabled=false")
    kinds = sorted((o["kind"], o["metadata"]["name"]) for o in render(chart / "values.yaml", *off))
    assert kinds == [
        ("Pod", "tuneport-test-launcher"),
        ("Role", "tuneport-launcher"),
        ("RoleBinding", "tuneport-launcher"),
        ("RoleBinding", "tuneport-launcher-kubeflow"),
        ("ServiceAccount", "tuneport-launcher"),
    ]
    policies = of_kind(render(chart / "values.yaml", "mlflow.enabled=false"), "NetworkPolicy")
    assert [p["metadata"]["name"] for p in policies] == ["tuneport-stages", "tuneport-training"]
    assert not may_connect(policies, WORKER, STRANGER, 5000)


# Each value that is no switch, set to another, and what then stands in the objects.
CHANGES = [
    ("image=registry.example/own:1", "image: registry.example/own:1"),
    ("imagePullSecrets={registry}", "- name: registry"),
    ("launcher.serviceAccount.name=runner", "serviceAccountName: runner"),
    ("launcher.kubeflowRole.kind=ClusterRole", "kind: ClusterRole"),
    ("launcher.kubeflowRole.name=kubeflow-edit", "name: kubeflow-edit"),
    ("sharedVolume.size=7Ti", "storage: 7Ti"),
    ("sharedVolume.storageClass=nfs", "storageClassName: nfs"),
    ("sharedVolume.accessMode=ReadWriteOnce", "accessModes: [ReadWriteOnce]"),
    ("trainingRuntime.enabled=true,trainingRuntime.restarts=3", "maxRestarts: 3"),
    ("trainingRuntime.enabled=true,trainingRuntime.priorityClass=high", "priorityClassName: high"),
    ("localQueue.clusterQueue=gpus", "clusterQueue: gpus"),
    ("mlflow.database.key=address", "key: address"),
    ("mlflow.artifacts.destination=s3://another", "--artifacts-destination=s3://another"),
    ("mlflow.artifacts.endpoint=https://s3.example", "value: https://s3.example"),
    ("mlflow.artifacts.region=eu-1", "value: eu-1"),
    ("mlflow.artifacts.existingSecret=keys", "name: keys"),
    ("mlflow.volume.size=9Gi", "storage: 9Gi"),
    ("mlflow.volume.storageClass=fast", "storageClassName: fast"),
    ("mlflow.hosts={mlflow.example}", "--cors-allowed-origins=https://mlflow.example"),
    ("mlflow.workers=3", "--workers=3"),
    ("mlflow.serviceAccountAnnotations.role=r", "role: r"),
    ("mlflow.resources.requests.cpu=3", "cpu: 3"),
    ("mlflow.resources.limits.memory=9Gi", "memory: 9Gi"),
    ("networkPolicy.mlflowClients[0].podSelector.matchLabels.a=one", "a: one"),
    ("networkPolicy.mlflowEgress[0].ports[0].port=1521", "port: 1521"),
    ("networkPolicy.stageEgress[0].ports[0].port=1522", "port: 1522"),
    ("networkPolicy.trainingEgress[0].ports[0].port=1523", "port: 1523"),
    ("sharedVolume.enabled=false,networkPolicy.storeEgress[0].ports[0].port=1524", "port: 1524"),
]


@pytest.mark.parametrize(("setting", "made"), CHANGES, ids=[setting for setting, _ in CHANGES])
def test_every_value_changes_what_is_made(helm: Any, chart: Path, setting: str, made: str) -> None:
    files = ["values.yaml"]
    if setting.startswith(("mlflow.artifacts", "mlflow.database")):
        files.append("values-production.yaml")
    flags = [f"--values={chart / name}" for name in files]
    before = helm("template", "tuneport", str(chart), "--namespace=team", *flags)
    after = helm("template", "tuneport", str(chart), "--namespace=team", *flags, "--set", setting)
    assert after.returncode == 0, after.stderr
    assert after.stdout.count(made) > before.stdout.count(made)


def test_a_queue_is_of_the_newest_kind_that_the_cluster_knows(render: Any, chart: Path) -> None:
    values = chart / "values-production.yaml"
    (older,) = of_kind(render(values), "LocalQueue")
    (newer,) = of_kind(render(values, flags=(f"--api-versions={KUEUE}/v1beta2/LocalQueue",)), "LocalQueue")
    assert (older["apiVersion"], newer["apiVersion"]) == (f"{KUEUE}/v1beta1", f"{KUEUE}/v1beta2")
    assert not of_kind(render(chart / "values.yaml"), "LocalQueue")
