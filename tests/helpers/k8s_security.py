"""The rules about who may do what: Pod Security, networks, secrets, rights, queues. Joins those of k8s_rules."""

import json
import re
from collections.abc import Iterator

from k8s_rules import RULES, clusters, groups, jobs, name_of, pods, rule
from k8s_schema import schema_faults

from cluster.jobs.kuberay.kustomize import containers

_HOST = re.compile(r"\b[a-z0-9-]+(\.[a-z0-9-]+)*\.(io|com|org|dev|net|cloud)/")


def broken_rules(objects: list[dict]) -> list[str]:
    """Every breach of the schemas; where there is none, every breach of a rule, which reads what the schemas promise."""
    faults = [f"{fault} ({name_of(one)})" for one in objects for fault in schema_faults(one)]
    return faults or [f"{name}: {said}" for name, rule in RULES.items() for said in rule(objects)]


@rule
def pod_security(objects: list[dict]) -> Iterator[str]:
    for name, pod in pods(objects):
        wanted = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
        found = pod.get("securityContext", {})
        if {key: found.get(key) for key in wanted} != wanted:
            yield f"{name}: a pod does not run as user 1000 with fsGroup 1000"
        if found.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: a pod's seccompProfile is not RuntimeDefault"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{name}: {key}"
        if any("hostPath" in volume for volume in pod.get("volumes", [])):
            yield f"{name}: hostPath"
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            yield from _container(f"{name}: {container['name']}", container.get("securityContext", {}))
    for name, cluster in clusters(objects):
        if cluster.get("enableInTreeAutoscaling"):
            context = cluster.get("autoscalerOptions", {}).get("securityContext", {})
            yield from _container(f"{name}: autoscaler", context)


def _container(where: str, context: dict) -> Iterator[str]:
    if context.get("runAsNonRoot") is not True or context.get("privileged"):
        yield f"{where} may run as root"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where} may escalate privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context["capabilities"].get("add"):
        yield f"{where} keeps capabilities"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{where} has no seccompProfile"


@rule
def idle_head(objects: list[dict]) -> Iterator[str]:
    for name, kind, group in groups(objects):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        if kind == "head" and group["rayStartParams"].get("num-cpus") != "0":
            yield f"{name}: the head's num-cpus is not '0'"
        if kind == "head" and "nvidia.com/gpu" in limits:
            yield f"{name}: the head has a GPU"


@rule
def worker_resources(objects: list[dict]) -> Iterator[str]:
    for name, _, group in groups(objects):
        pod = group["template"]["spec"]
        share = pod["containers"][0]["resources"]
        for key in ("memory", "nvidia.com/gpu"):
            if share["requests"].get(key) != share["limits"].get(key):
                yield f"{name}: {key} of request and limit differ"
        if "memory" not in share["limits"]:
            yield f"{name}: no limit of memory"
        tolerated = [(t.get("key"), t.get("operator"), t.get("effect")) for t in pod.get("tolerations", [])]
        if (
            "nvidia.com/gpu" in share["limits"]
            and ("nvidia.com/gpu", "Exists", "NoSchedule") not in tolerated
        ):
            yield f"{name}: GPU nodes' taint is not tolerated"


@rule
def service_account(objects: list[dict]) -> Iterator[str]:
    for name, pod in pods(objects):
        if not pod.get("serviceAccountName"):
            yield f"{name}: a pod runs by the namespace's default account"
    for name, cluster in clusters(objects):
        head, *others = (group["template"]["spec"] for _, _, group in groups_of(cluster))
        if any(pod.get("automountServiceAccountToken") is not False for pod in others):
            yield f"{name}: workers hold a token of the API server"
        wanted = bool(cluster.get("enableInTreeAutoscaling"))
        if head.get("automountServiceAccountToken") is not wanted:
            yield f"{name}: the head's automountServiceAccountToken is not {wanted}, as its autoscaler needs"
    for one in objects:
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding", "ClusterRole", "Role"):
            yield f"{name_of(one)}: nothing here needs rights of its own"


def groups_of(cluster: dict) -> Iterator[tuple[str, str, dict]]:
    yield from groups(
        [{"kind": "RayService", "metadata": {"name": ""}, "spec": {"rayClusterConfig": cluster}}]
    )


@rule
def secrets(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        if one["kind"] == "Secret":
            yield f"{name_of(one)}: secrets are named, never written"
        for container in containers(one):
            for variable in container.get("env", []):
                if re.search(r"TOKEN|PASSWORD|SECRET|KEY", variable["name"]) and "value" in variable:
                    yield f"{name_of(one)}: {variable['name']} is written out"
    for name, cluster in clusters(objects):
        if "value" in cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}):
            yield f"{name}: redisPassword is written out"


@rule
def registry_host(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        for container in containers(one):
            if _HOST.match(container["image"]):
                yield f"{name_of(one)}: {container['image']} names a registry"


@rule
def fault_tolerance(objects: list[dict]) -> Iterator[str]:
    for name, cluster in clusters(objects):
        if name.startswith("RayService") and "gcsFaultToleranceOptions" not in cluster:
            yield f"{name}: the head dies with all it knows (gcsFaultToleranceOptions)"
        if not name.startswith("RayService") and "gcsFaultToleranceOptions" in cluster:
            yield f"{name}: a job recovers by a new cluster, not by gcsFaultToleranceOptions"


@rule
def queue(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        if one["kind"] != "RayJob":
            continue
        if "suspend" in one["spec"]:
            yield f"{name_of(one)}: spec.suspend is Kueue's"
        if "kueue.x-k8s.io/queue-name" in one["metadata"].get("labels", {}):
            cluster = one["spec"]["rayClusterSpec"]
            # Kueue's webhook counts the head and the submitter, too (v0.19).
            num_sets = len(cluster["workerGroupSpecs"]) + 1 + (one["spec"]["submissionMode"] == "K8sJobMode")
            if num_sets > 18:
                yield f"{name_of(one)}: Kueue takes 18 kinds of pods"
            if any(group["groupName"] == "head" for group in cluster["workerGroupSpecs"]):
                yield f"{name_of(one)}: Kueue calls the head's group head"
            if cluster.get("enableInTreeAutoscaling"):
                yield f"{name_of(one)}: Kueue takes no autoscaling clusters"


@rule
def network_policy(objects: list[dict]) -> Iterator[str]:
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    for name, cluster in clusters(objects):
        if "networkPolicy" in cluster:
            yield f"{name}: spec.networkPolicy is alpha and refused where its gate is off"
        for _, kind, group in groups_of(cluster):
            labels = group["template"].get("metadata", {}).get("labels", {}) | {
                "ray.io/node-type": kind.rstrip("s")
            }
            yield from _node_is_closed(f"{name}: {kind}", labels, policies)
    for name, job in jobs(objects):
        labels = job.get("submitterPodTemplate", {}).get("metadata", {}).get("labels", {})
        applied = [one["spec"] for one in policies if _selects(one["spec"]["podSelector"], labels)]
        if not any("Ingress" in spec["policyTypes"] and "Egress" in spec["policyTypes"] for spec in applied):
            yield f"{name}: no policy closes the submitter"


def _node_is_closed(where: str, labels: dict, policies: list[dict]) -> Iterator[str]:
    applied = [
        one["spec"]
        for one in policies
        if one["spec"]["podSelector"] and _selects(one["spec"]["podSelector"], labels)
    ]
    closed = {kind for spec in applied for kind in spec["policyTypes"]}
    if closed != {"Ingress", "Egress"}:
        yield f"{where}: no policy closes {', '.join({'Ingress', 'Egress'} - closed)}"
        return
    inlets = [(way, spec) for spec in applied for way in spec.get("ingress", [])]
    outlets = [way for spec in applied for way in spec.get("egress", [])]
    inside = [way for way, _ in inlets if _is_inside(way.get("from", []), labels)]
    if not inside or not any(_is_inside(way.get("to", []), labels) for way in outlets):
        yield f"{where}: pods of one cluster do not reach each other"
    if any(_opens(way, 10001) for way, _ in inlets):
        yield f"{where}: port 10001 is open"
    if not any(_opens(way, 53) and way.get("to") and not _is_inside(way["to"], labels) for way in outlets):
        yield f"{where}: no way to DNS"
    for way, _ in inlets:
        if _opens(way, 8265) and way not in inside:
            others = [peer for peer in way.get("from", [{}]) if not _is_known_at_dashboard(peer, labels)]
            if others or not way.get("from"):
                yield f"{where}: port 8265 is open to {json.dumps(others) if others else 'everyone'}"


def _is_inside(peers: list[dict], labels: dict) -> bool:
    """Whether every peer is of the pod's own job."""
    return bool(peers) and all(
        "namespaceSelector" not in peer
        and peer.get("podSelector", {}).get("matchLabels", {}).get("fsl-dist/job")
        == labels.get("fsl-dist/job")
        and _selects(peer["podSelector"], labels)
        for peer in peers
    )


def _is_known_at_dashboard(peer: dict, labels: dict) -> bool:
    submitter = {"fsl-dist/job": labels.get("fsl-dist/job"), "fsl-dist/part": "submitter"}
    operator = {"kubernetes.io/metadata.name": "kuberay-system"}
    if "namespaceSelector" in peer:
        return peer["namespaceSelector"].get("matchLabels") == operator
    return peer.get("podSelector", {}).get("matchLabels") == submitter


def _selects(selector: dict, labels: dict) -> bool:
    return set(selector) <= {"matchLabels"} and selector.get("matchLabels", {}).items() <= labels.items()


def _opens(way: dict, port: int) -> bool:
    ports = way.get("ports")
    return not ports or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports)
