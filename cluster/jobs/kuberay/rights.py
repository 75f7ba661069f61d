"""What people who submit jobs must be allowed in the namespace, and no more."""

from cluster.jobs.kuberay.kustomize import Manifest

ROLE = "fsl-dist-submitter"

RIGHTS = {
    ("ray.io", "rayjobs"): ("get", "list", "create", "patch", "delete"),
    ("networking.k8s.io", "networkpolicies"): ("get", "create", "patch", "delete"),
    ("", "configmaps"): ("get", "create", "patch", "delete"),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
}
"""what submit, status, logs and stop do, by API group and resource"""

LOOKS = {
    ("", "events"): ("list",),
    ("ray.io", "rayclusters"): ("get",),
    ("ray.io", "raycronjobs"): ("get", "list"),
    ("kueue.x-k8s.io", "workloads"): ("list",),
    ("kueue.x-k8s.io", "localqueues"): ("get",),
    ("", "persistentvolumeclaims"): ("get",),
    ("", "serviceaccounts"): ("get",),
}
"""what is asked for where it is allowed: why a job waits, what the options name, what a schedule ran"""


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
