"""The least rights in a namespace for people who submit jobs."""

from cluster.jobs.kuberay.kustomize import Manifest

ROLE = "fsl-dist-submitter"

RIGHTS = {
    ("ray.io", "rayjobs"): ("get", "list", "create", "patch", "delete"),
    ("networking.k8s.io", "networkpolicies"): ("get", "create", "patch", "delete"),
    ("", "configmaps"): ("get", "create", "patch", "delete"),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
}
"""needed by submit, status, logs and stop, by API group and resource"""

LOOKS = {
    ("", "events"): ("list",),
    ("ray.io", "rayclusters"): ("get",),
    ("ray.io", "raycronjobs"): ("get", "list"),
    ("kueue.x-k8s.io", "workloads"): ("list",),
    ("kueue.x-k8s.io", "localqueues"): ("get",),
    ("", "persistentvolumeclaims"): ("get",),
    ("", "serviceaccounts"): ("get",),
}
"""used if allowed: to see why a job waits, to check options, to list the runs of a schedule"""


def render_role(namespace: str) -> Manifest:
    """One Role with these rights."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        for (group, resource), verbs in {**RIGHTS, **LOOKS}.items()
    ]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": ROLE, "namespace": namespace},
        "rules": rules,
    }
