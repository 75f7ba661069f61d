"""Pod Security "restricted": the documented rules for pods in a namespace that enforces it."""

from collections.abc import Iterator
from typing import Any

from cluster.jobs.kuberay.kustomize import Manifest

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_CONFINED = {"RuntimeDefault", "Localhost"}


def find_faults(pod: Manifest) -> Iterator[str]:
    """Each way in which a pod's spec breaks the restricted rules, with the field and its value."""
    context = pod.get("securityContext") or {}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key}={pod[key]}"
    for volume in pod.get("volumes") or []:
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    for sysctl in context.get("sysctls") or []:
        if sysctl.get("name") not in _SYSCTLS:
            yield f"sysctl {sysctl.get('name')}"
    yield from _shared_faults("the pod", context)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(kind) or []:
            yield from _container_faults(container, context)


def _container_faults(container: Manifest, of_pod: dict[str, Any]) -> Iterator[str]:
    where, context = f"container {container.get('name')}", container.get("securityContext") or {}
    yield from _shared_faults(where, context)
    if context.get("privileged"):
        yield f"{where} is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{where} has no allowPrivilegeEscalation=false"
    if "ALL" not in ((context.get("capabilities") or {}).get("drop") or []):
        yield f"{where} does not drop the capabilities ALL"
    for name in (context.get("capabilities") or {}).get("add") or []:
        if name != "NET_BIND_SERVICE":
            yield f"{where} adds the capability {name}"
    if context.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield f"{where} has no runAsNonRoot=true"
    profile = context.get("seccompProfile") or of_pod.get("seccompProfile") or {}
    if profile.get("type") not in _CONFINED:
        yield f"{where} has no seccompProfile RuntimeDefault or Localhost"
    if context.get("procMount", "Default") != "Default":
        yield f"{where} has procMount={context['procMount']}"
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield f"{where} takes port {port['hostPort']} of its node"


def _shared_faults(where: str, context: dict[str, Any]) -> Iterator[str]:
    """Faults that a pod's and a container's security context can both have."""
    if context.get("runAsUser") == 0:
        yield f"{where} has runAsUser=0"
    if context.get("runAsNonRoot") is False:
        yield f"{where} has runAsNonRoot=false"
    for kind in ("seccompProfile", "appArmorProfile"):
        if (context.get(kind) or {}).get("type", "RuntimeDefault") not in _CONFINED:
            yield f"{where} has {kind}={context[kind]['type']}"
    options = context.get("seLinuxOptions") or {}
    if options.get("type", "") not in _SELINUX or options.get("user") or options.get("role"):
        yield f"{where} has seLinuxOptions={options}"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{where} has hostProcess=true"
