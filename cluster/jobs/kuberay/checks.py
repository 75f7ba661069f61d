"""Checks of a cluster before any object of a job is created there: each failure is one line with what to do."""

import logging

from cluster.jobs.job import Job
from cluster.jobs.kuberay.api import KubeApi, KubeError
from cluster.jobs.kuberay.rendering import MANIFESTS, KubeOptions
from cluster.jobs.kuberay.rights import RIGHTS
from index.base.errors import RequestError

log = logging.getLogger(__name__)

_OPERATOR = "app.kubernetes.io/component=kuberay-operator"


def find_operator(api: KubeApi, options: KubeOptions) -> str:
    """The namespace of KubeRay's operator: that of its pod, if pods may be listed; else that of `options`.

    The network policies of a job admit that namespace. Otherwise the operator cannot reach a job's dashboard, and
    reports a job that succeeded as failed.
    """
    found = api.look("/api/v1/pods", labelSelector=_OPERATOR)
    spaces = sorted({pod["metadata"]["namespace"] for pod in found["items"]}) if found else []
    if not spaces or options.operator_namespace in spaces:
        return options.operator_namespace
    log.info("KubeRay's operator is in namespace %s; the job's network policies admit it", spaces[0])
    return spaces[0]


def check_cluster(api: KubeApi, job: Job, options: KubeOptions) -> None:
    """Refuse a job that the cluster cannot run. Raises RequestError."""
    namespace = options.namespace
    _check_kuberay(api)
    if _is_missing(api, f"/api/v1/namespaces/{namespace}"):
        raise RequestError(
            f"there is no namespace {namespace} (kubectl apply -k {MANIFESTS / 'overlays' / 'cpu'}, or --namespace)"
        )
    _check_rights(api, namespace)
    if api.find(f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{job.name}") is not None:
        raise RequestError(
            f"job {job.name} exists in namespace {namespace} (choose another --name; kubectl -n {namespace} delete rayjob "
            f"{job.name} removes it)"
        )
    if _is_missing(api, f"/api/v1/namespaces/{namespace}/serviceaccounts/{options.service_account}"):
        raise RequestError(
            f"there is no ServiceAccount {options.service_account} in namespace {namespace} (kubectl -n {namespace} create "
            f"serviceaccount {options.service_account})"
        )
    if not options.is_bucket:
        _check_claim(api, options)
    if options.queue:
        _check_queue(api, options)


def _check_kuberay(api: KubeApi) -> None:
    found = api.find("/apis/ray.io/v1")
    if found is None or "rayjobs" not in [resource["name"] for resource in found.get("resources", [])]:
        raise RequestError(
            f"the cluster at {api.host} has no KubeRay, which runs jobs ({MANIFESTS / 'README.md'} installs its operator; kubectl "
            "config use-context chooses another cluster)"
        )


def _check_rights(api: KubeApi, namespace: str) -> None:
    missing = []
    for (group, resource), verbs in RIGHTS.items():
        name, _, part = resource.partition("/")
        for verb in verbs:
            asked = {
                "namespace": namespace,
                "verb": verb,
                "group": group,
                "resource": name,
                "subresource": part,
            }
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            if not api.create(path, review)["status"]["allowed"]:
                missing.append(f"{verb} {resource}")
    if missing:
        raise RequestError(
            f"you may not {', '.join(missing)} in namespace {namespace} (fsl-dist k8s rights --namespace {namespace} prints the role "
            "that allows it, for kubectl apply -f -)"
        )


def _check_claim(api: KubeApi, options: KubeOptions) -> None:
    namespace, name = options.namespace, options.storage
    try:
        claim = api.find(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
    except KubeError as error:
        if error.status == 403:
            return
        raise
    if claim is None:
        raise RequestError(
            f"--storage {name}: there is no such PersistentVolumeClaim in namespace {namespace} "
            f"({MANIFESTS / 'base' / 'storage.yaml'} makes one; s3://BUCKET/… needs none)"
        )
    modes = claim["spec"].get("accessModes", [])
    if "ReadWriteMany" not in modes:
        raise RequestError(
            f"--storage {name} is {', '.join(modes)}; workers on several nodes write it, so it must be ReadWriteMany"
        )


def _check_queue(api: KubeApi, options: KubeOptions) -> None:
    kueue = api.find("/apis/kueue.x-k8s.io")
    if kueue is None:
        raise RequestError(
            f"--queue {options.queue}: the cluster has no Kueue (without --queue the job starts at once)"
        )
    version = kueue["preferredVersion"]["groupVersion"]
    if _is_missing(api, f"/apis/{version}/namespaces/{options.namespace}/localqueues/{options.queue}"):
        raise RequestError(
            f"--queue {options.queue}: there is no such LocalQueue in namespace {options.namespace} (kubectl -n "
            f"{options.namespace} get localqueues)"
        )


def _is_missing(api: KubeApi, path: str) -> bool:
    """Whether an object certainly does not exist; without the right to read it, it may."""
    try:
        return api.find(path) is None
    except KubeError as error:
        if error.status == 403:
            return False
        raise
