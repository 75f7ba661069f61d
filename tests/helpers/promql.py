"""The queries of k8s/monitoring, and whether what a real process exports answers them."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import promql_parser as promql
from prometheus_client.samples import Sample

from cluster.jobs.kuberay.kustomize import build

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "monitoring"
# What Prometheus adds to the samples of a pod, and the labels that the PodMonitors pass on.
TARGET_LABELS = {"namespace", "pod", "instance", "ray_io_cluster"}


@dataclass(frozen=True)
class Query:
    """One query and where it is."""

    place: str
    text: str


def dashboards() -> dict[str, dict]:
    """Each dashboard by its file's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(MONITORING.glob("dashboards/*.json"))}


def rules() -> list[dict]:
    """All alerts."""
    spec = next(one for one in build(MONITORING) if one["kind"] == "PrometheusRule")["spec"]
    return [rule for group in spec["groups"] for rule in group["rules"]]


def queries() -> list[Query]:
    """Every query of every panel, alert and variable."""
    found = [Query(f"alert {rule['alert']}", rule["expr"]) for rule in rules()]
    for name, board in dashboards().items():
        for panel in board["panels"]:
            found += [Query(f"{name}: {panel['title']}", target["expr"]) for target in panel["targets"]]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert metric is not None, variable
                found.append(Query(f"{name}: ${variable['name']}", f"max by ({metric[2]}) ({metric[1]})"))
    return found


def documented() -> set[str]:
    """Every metric that the page names, without those that it only begins."""
    page = (ROOT / "docs" / "how_to" / "monitoring.md").read_text()
    return set(re.findall(r"`((?:ray_)?fsl_dist_\w+)`", page)) - {"ray_fsl_dist_"}


def unanswered(query: Query, samples: Sequence[Sample]) -> list[str]:
    """The selectors that find no sample, and the labels that no sample has by which a query groups."""
    tree = promql.parse(query.text)
    parts = list(_parts(tree))
    faults, found = [], []
    for selector in (part for part in parts if isinstance(part, promql.VectorSelector)):
        matching = [sample for sample in samples if _selects(selector, sample)]
        found += matching
        if not matching:
            faults.append(f"{query.place}: nothing that is exported is {selector}")
    if faults:
        return faults  # the labels of what is not there are not known
    known = TARGET_LABELS.union(*(sample.labels for sample in found))
    for part in parts:
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            faults += [
                f"{query.place}: no sample has {label}"
                for label in part.modifier.labels
                if label not in known
            ]
    return faults


def _parts(tree: object) -> Iterator[object]:
    """An expression and all in it."""
    if isinstance(tree, promql.MatrixSelector):
        yield from _parts(tree.vector_selector)
        return
    yield tree
    inner: Iterable[object] = ()
    if isinstance(tree, promql.Call):
        inner = tree.args
    elif isinstance(tree, promql.BinaryExpr):
        inner = (tree.lhs, tree.rhs)
    elif isinstance(tree, promql.AggregateExpr | promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        inner = (tree.expr,)
    else:
        assert isinstance(tree, promql.VectorSelector | promql.NumberLiteral | promql.StringLiteral), tree
    for part in inner:
        yield from _parts(part)


def _selects(selector: promql.VectorSelector, sample: Sample) -> bool:
    if selector.name is not None and selector.name != sample.name:
        return False
    for matcher in selector.matchers.matchers:
        value = sample.name if matcher.name == "__name__" else sample.labels.get(matcher.name, "")
        wanted = re.sub(r"\$\w+", ".*", matcher.value)  # a variable of the dashboard, all of its values
        does = (
            value == wanted
            if matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
            else re.fullmatch(wanted, value) is not None
        )
        if does != (matcher.op in (promql.MatchOp.Equal, promql.MatchOp.Re)):
            return False
    return True
