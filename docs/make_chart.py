"""Writes the templates of the Helm chart in k8s/chart from the files that kustomize builds: one source for both.

.venv/bin/python docs/make_chart.py            writes k8s/chart/templates
.venv/bin/python docs/make_chart.py --check    exit 1 where a template is not what the files give

A template has the objects of k8s/base and k8s/monitoring. What a component of k8s/components changes becomes a
condition, and `VALUES` says which parts become values. Templates use Go's own template functions alone, so that tests
can render them without Helm.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.jobs.kuberay.kustomize import Manifest, apply_component, build
from cluster.jobs.kuberay.rights import render_role

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
TEMPLATES = K8S / "chart" / "templates"
HEADER = "{{- /* Written by docs/make_chart.py from the files that kustomize builds: change those. */}}\n"

# File → its condition, and the objects in it.
FILES: dict[str, tuple[str, str]] = {
    "account.yaml": (".Values.serviceAccount.create", "ServiceAccount .*"),
    "storage.yaml": (
        "and .Values.storage.create (not .Values.storage.bucket)",
        "PersistentVolumeClaim .*",
    ),
    "rights.yaml": (".Values.rights", "Role .*"),
    "deny-all.yaml": (".Values.denyAll", "NetworkPolicy deny-all"),
    "redis.yaml": (".Values.service.enabled", ".* fsl-dist-redis"),
    "index-service.yaml": (
        ".Values.service.enabled",
        "(RayService|NetworkPolicy) fsl-dist-index(-dashboard)?",
    ),
    "index-rebuild.yaml": (".Values.rebuild.enabled", "(RayCronJob|NetworkPolicy) fsl-dist-index-rebuild.*"),
    "monitors.yaml": (
        ".Values.monitors.enabled",
        "(PodMonitor|PrometheusRule) .*",
    ),
    "dashboards.yaml": (".Values.monitors.enabled", "ConfigMap fsl-dist-dashboards"),
}
# Condition → the component that applies where it is true.
COMPONENTS = {".Values.storage.bucket": "bucket", ".Values.rebuild.gpu": "gpu"}


def quoted(value: str) -> str:
    """A template of a value that is text."""
    return f'{{{{ printf "%q" .Values.{value} }}}}'


def plain(value: str) -> str:
    """A template of a number, or of a part of a text."""
    return f"{{{{ .Values.{value} }}}}"


_SERVICE, _REBUILD, _POLICY = "RayService fsl-dist-index", "RayCronJob .*", "NetworkPolicy .*"
_WORKER = ".*workerGroupSpecs/0/.*"
_SIZES = f"{_WORKER}resources/(requests|limits)/"
# Where (object and path, as one expression), what is there, and what the chart has in its place.
VALUES: list[tuple[str, str | int, str]] = [
    (".* /metadata/namespace", "fsl-dist", '{{ printf "%q" .Release.Namespace }}'),
    (
        ".*/(head|worker|submitter).*/image",
        "fsl-dist:0.2.0",
        '{{ printf "%s:%s" .Values.image.repository .Values.image.tag | printf "%q" }}',
    ),
    (".*ray.*/imagePullPolicy|.*submitter.*/imagePullPolicy", "IfNotPresent", quoted("image.pullPolicy")),
    (".*/serviceAccountName", "fsl-dist", quoted("serviceAccount.name")),
    ("ServiceAccount fsl-dist /metadata/name", "fsl-dist", quoted("serviceAccount.name")),
    ("PersistentVolumeClaim .* /metadata/name", "fsl-dist", quoted("storage.claim")),
    (".*/persistentVolumeClaim/claimName", "fsl-dist", quoted("storage.claim")),
    ("PersistentVolumeClaim .*/storage", "500Gi", quoted("storage.size")),
    (".*/envFrom/0/secretRef/name", "fsl-dist-storage", quoted("storage.secret")),
    (f"{_POLICY}kubernetes.io~1metadata.name", "monitoring", quoted("namespaces.monitoring")),
    (f"{_POLICY}kubernetes.io~1metadata.name", "kuberay-system", quoted("namespaces.operator")),
    (f"{_POLICY}kubernetes.io~1metadata.name", "kube-system", quoted("namespaces.dns")),
    ("StatefulSet .*/image", "redis:8.2.2", quoted("service.redis.image")),
    (".*/valueFrom/secretKeyRef/name", "fsl-dist-redis", quoted("service.redis.secret")),
    (f"{_SERVICE} .*/valueFrom/secretKeyRef/name", "fsl-dist-index", quoted("service.tokenSecret")),
    (
        f"{_SERVICE} /spec/serveConfigV2",
        "index: /mnt/fsl-dist/indexes/first",
        f"index: {quoted('service.index')}",
    ),
    (
        f"{_SERVICE} /spec/serveConfigV2",
        "index: s3://my-bucket/indexes/first",
        f"index: {quoted('service.index')}",
    ),
    (f"{_SERVICE} /spec/serveConfigV2", "cache_gb: 50", f"cache_gb: {plain('storage.cacheGb')}"),
    (f"{_SERVICE} /spec/serveConfigV2", "replicas: 2", f"replicas: {plain('service.replicas')}"),
    (f"{_SERVICE} /spec/serveConfigV2", "cpus: 4", f"cpus: {plain('service.cpus')}"),
    (
        f"{_SERVICE} /spec/serveConfigV2",
        "ray_version: 2.60.0\n",
        "ray_version: 2.60.0\n"
        "{{- range $key, $value := .Values.service.args }}\n"
        "      {{ $key }}: {{ $value }}\n"
        "{{- end }}\n",
    ),
    (
        f"{_SERVICE} .*/env/\\d+/value",
        '"INDEX_TOKEN"}',
        '\\"INDEX_TOKEN\\"{{ range $key, $value := .Values.service.gate }}, \\"{{ $key }}\\": {{ $value }}{{ end }}}',
    ),
    (f"{_SERVICE} .*/(replicas|minReplicas|maxReplicas)", 2, plain("service.replicas")),
    (f"{_SERVICE} {_SIZES}cpu", "4", f'"{plain("service.cpus")}"'),
    (f"{_SERVICE} {_SIZES}memory", "16Gi", quoted("service.memory")),
    (f"{_REBUILD} /spec/schedule", "30 2 * * *", quoted("rebuild.schedule")),
    (f"{_REBUILD} /spec/timeZone", "Etc/UTC", quoted("rebuild.timeZone")),
    *(
        (f"{_REBUILD} .*/entrypoint", f"{root}/{path}", plain(value))
        for root in ("/mnt/fsl-dist", "s3://my-bucket")
        for path, value in (
            ("runs/first", "rebuild.run"),
            ("data/omniglot", "rebuild.dataset"),
            ("indexes/first", "rebuild.index"),
        )
    ),
    (
        f"{_REBUILD} .*/entrypoint",
        " kind=ivf_flat metric=cosine",
        "{{ range .Values.rebuild.settings }} {{ . }}{{ end }}",
    ),
    (f"{_REBUILD} .*/entrypoint", "--workers 2", f"--workers {plain('rebuild.workers')}"),
    (f"{_REBUILD} .*/(replicas|minReplicas|maxReplicas)", 2, plain("rebuild.workers")),
    (f"{_REBUILD} {_SIZES}cpu", "4", f'"{plain("rebuild.cpus")}"'),
    (f"{_REBUILD} {_SIZES}memory", "16Gi", quoted("rebuild.memory")),
]
# Lines that are added to each pod, and to the objects of these expressions at this path.
POD = """\
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- range $key, $value := . }}
  {{ printf "%q" $key }}: {{ printf "%q" $value }}
  {{- end }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ printf "%q" . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ printf "%q" . }}
{{- end }}
"""
TOLERATIONS = """\
  {{- range .Values.tolerations }}
  -
    {{- range $key, $value := . }}
    {{ $key }}: {{ printf "%q" $value }}
    {{- end }}
  {{- end }}
"""
ADDED = {
    "ServiceAccount .* /metadata": """\
{{- with .Values.serviceAccount.annotations }}
annotations:
  {{- range $key, $value := . }}
  {{ printf "%q" $key }}: {{ printf "%q" $value }}
  {{- end }}
{{- end }}
""",
    "PersistentVolumeClaim .* /spec": """\
{{- with .Values.storage.className }}
storageClassName: {{ printf "%q" . }}
{{- end }}
""",
    "(PodMonitor|PrometheusRule) .* /metadata/labels": """\
{{- range $key, $value := .Values.monitors.labels }}
{{ printf "%q" $key }}: {{ printf "%q" $value }}
{{- end }}
""",
}
_MISSING = object()
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
Variants = Mapping[str, Any]
"""condition → what is there where it is true"""


def make_templates() -> dict[str, str]:
    """The text of each template by its file's name."""
    base = [*build(K8S / "base"), *build(K8S / "monitoring"), render_role("fsl-dist")]
    base += [one for one in build(K8S / "overlays" / "restricted") if one["metadata"]["name"] == "deny-all"]
    changed = {
        condition: {_name(one): one for one in apply_component(K8S / "components" / component, _copy(base))}
        for condition, component in COMPONENTS.items()
    }
    texts = {}
    for file, (condition, wanted) in FILES.items():
        parts = []
        for one in base:
            if re.fullmatch(wanted, _name(one)):
                variants = {when: objects.get(_name(one), one) for when, objects in changed.items()}
                lines = _lines(one, variants, _name(one) + " ")
                parts.append("---\n" + "\n".join(lines) + "\n")
        texts[file] = f"{HEADER}{{{{- if {condition} }}}}\n{''.join(parts)}{{{{- end }}}}\n"
    return texts


def _name(one: Manifest) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def _copy(part: Any) -> Any:
    return json.loads(json.dumps(part))


def _lines(base: Any, variants: Variants, place: str) -> list[str]:
    """A part of an object, none of which is missing, as lines of YAML."""
    values = (base, *variants.values())
    if not any(values) and isinstance(base, dict | list):
        return [json.dumps(base)]
    if all(isinstance(value, dict) for value in values):
        return list(_mapping(base, variants, place))
    if all(isinstance(value, list) for value in values):
        return list(_sequence(base, variants, place))
    assert all(value == base for value in variants.values()), place
    return _scalar(base, place).split("\n")


def _mapping(base: dict, variants: Variants, place: str) -> Iterator[str]:
    keys = list(dict.fromkeys([*base, *(key for value in variants.values() for key in value)]))
    is_pod = isinstance(base.get("containers"), list)
    for key in keys:
        if is_pod and key == "tolerations":
            continue
        found = {when: value.get(key, _MISSING) for when, value in variants.items()}
        where = f"{place}/{key.replace('/', '~1')}"
        yield from _choose(base.get(key, _MISSING), found, where, lambda lines, key=key: _entry(key, lines))
    if is_pod:
        yield from POD.splitlines()
        yield from _tolerations(variants)
    for expression, added in ADDED.items():
        if re.fullmatch(expression, place):
            yield from added.splitlines()


def _sequence(base: list, variants: Variants, place: str) -> Iterator[str]:
    items = zip_longest(base, *variants.values(), fillvalue=_MISSING)
    for number, (one, *others) in enumerate(items):
        found = dict(zip(variants, others, strict=True))
        yield from _choose(one, found, f"{place}/{number}", _item)


def _choose(base: Any, variants: Variants, place: str, wrap: Any) -> Iterator[str]:
    """A part that differs as a whole becomes a condition; one that is there in all variants is looked into."""
    kinds = {type(value) for value in (base, *variants.values())}
    if len(kinds) == 1 and (kinds <= {dict, list} or all(value == base for value in variants.values())):
        yield from wrap(_lines(base, variants, place))
        return
    differing = {when: value for when, value in variants.items() if value != base}
    assert len(differing) == 1, f"{place}: two components change it"
    ((when, value),) = differing.items()
    if base is not _MISSING and value is not _MISSING:
        lines = _lines(base, {}, place)
        if lines == _lines(value, {}, place):  # they differ in what is a value of the chart
            yield from wrap(lines)
            return
    if base is _MISSING:
        yield f"{{{{- if {when} }}}}"
    else:
        yield f"{{{{- if not {when} }}}}"
        yield from wrap(_lines(base, {}, place))
        if value is not _MISSING:
            yield "{{- else }}"
    if value is not _MISSING:
        yield from wrap(_lines(value, {}, place))
    yield "{{- end }}"


def _entry(key: str, lines: list[str]) -> list[str]:
    shown = key if _PLAIN.fullmatch(key) else json.dumps(key)
    if len(lines) == 1 and not lines[0].startswith(("{{-", "- ")) and _is_value(lines[0]):
        return [f"{shown}: {lines[0]}"]
    if lines[0].startswith("|"):
        return [f"{shown}: {lines[0]}", *(f"  {line}" if line else "" for line in lines[1:])]
    return [f"{shown}:", *_indented(lines)]


def _is_value(line: str) -> bool:
    """Whether a line is a scalar rather than a mapping of one key."""
    return not re.match(r'("[^"]*"|[\w./~-]+):( |$)', line)


def _item(lines: list[str]) -> list[str]:
    if len(lines) == 1 and _is_value(lines[0]):
        return [f"- {lines[0]}"]
    if lines[0].startswith("{{-"):
        return ["-", *_indented(lines)]
    return [f"- {lines[0]}", *_indented(lines[1:])]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _tolerations(variants: Variants) -> Iterator[str]:
    """Those of components, and those of all pods."""
    own = {when: value["tolerations"] for when, value in variants.items() if "tolerations" in value}
    anyone = " ".join([".Values.tolerations", *own])
    yield f"{{{{- if or {anyone} }}}}" if own else "{{- if .Values.tolerations }}"
    yield "tolerations:"
    for when, items in own.items():
        yield f"  {{{{- if {when} }}}}"
        yield from _indented(_lines(items, {}, "tolerations"))
        yield "  {{- end }}"
    yield from TOLERATIONS.splitlines()
    yield "{{- end }}"


def _scalar(value: Any, place: str) -> str:
    """A value, or what the chart has in its place. A text of several lines begins with |."""
    pieces: list[tuple[str, bool]] = [(value, False)] if isinstance(value, str) else []
    for expression, old, new in VALUES:
        if not re.fullmatch(expression, place):
            continue
        if value == old and type(value) is type(old):
            return new
        if isinstance(old, str) and isinstance(value, str) and old in value:
            pieces = list(_replaced(pieces, old, new))
    if not isinstance(value, str):
        return json.dumps(value)
    if "\n" in value:
        text = "".join(piece if is_template else _literal(piece) for piece, is_template in pieces)
        assert value.endswith("\n"), place
        assert not value.startswith(" "), place
        return "|\n" + text.rstrip("\n")
    if len(pieces) == 1 and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    shown = (piece if is_template else _literal(json.dumps(piece)[1:-1]) for piece, is_template in pieces)
    return f'"{"".join(shown)}"'


def _replaced(pieces: list[tuple[str, bool]], old: str, new: str) -> Iterator[tuple[str, bool]]:
    for text, is_template in pieces:
        if is_template:
            yield text, True
            continue
        first, *others = text.split(old)
        yield first, False
        for other in others:
            yield new, True
            yield other, False


def _literal(text: str) -> str:
    """Text in which the engine sees no template."""
    return text.replace("{{", '{{ "{{" }}')


def main() -> None:
    """Write or compare the templates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    texts = make_templates()
    there = {path.name: path.read_text("utf-8") for path in TEMPLATES.glob("*")}
    if parser.parse_args().check:
        sys.exit(0 if there == texts else "k8s/chart/templates is stale: run python docs/make_chart.py")
    TEMPLATES.mkdir(exist_ok=True)
    for name in set(there) - set(texts):
        (TEMPLATES / name).unlink()
    for name, text in texts.items():
        (TEMPLATES / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
