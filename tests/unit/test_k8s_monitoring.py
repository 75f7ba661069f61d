"""What Prometheus and Grafana are given: valid objects, queries that parse, alerts that fire when they should."""

import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from k8s_schema import schema_faults
from prometheus import read_samples
from promql import MONITORING, Query, dashboards, queries, rules, unanswered

from cluster.jobs.kuberay.kustomize import build, pod_specs

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how_to" / "monitoring.md"
RUN, NAMESPACE = 'namespace="a",run="/runs/x"', 'namespace="a"'
REPLICA = f'{NAMESPACE},replica="r"'
SWEEP = f'{NAMESPACE},sweep="/sweeps/s"'
CLUSTER = f'{NAMESPACE},ray_io_cluster="c"'
# What fires each alert after three hours, and the same where all is well: series by name, values per minute.
FIRES = {
    "FslDistTrainingStalled": (
        {f"ray_fsl_dist_step{{{RUN}}}": "7x180"},
        {f"ray_fsl_dist_step{{{RUN}}}": "0+3x180"},
    ),
    "FslDistTrainingWaitsForData": (
        {
            f"ray_fsl_dist_time_data_wait_s{{{RUN}}}": "0.6x180",
            f"ray_fsl_dist_time_step_s{{{RUN}}}": "1x180",
        },
        {
            f"ray_fsl_dist_time_data_wait_s{{{RUN}}}": "0.1x180",
            f"ray_fsl_dist_time_step_s{{{RUN}}}": "1x180",
        },
    ),
    "FslDistTrainingSkipsSteps": (
        {f"ray_fsl_dist_train_skipped_steps{{{RUN}}}": "11x180"},
        {f"ray_fsl_dist_train_skipped_steps{{{RUN}}}": "2x180"},
    ),
    "FslDistNodeMemory": (
        {'ray_node_mem_used{pod="p"}': "96x180", 'ray_node_mem_total{pod="p"}': "100x180"},
        {'ray_node_mem_used{pod="p"}': "80x180", 'ray_node_mem_total{pod="p"}': "100x180"},
    ),
    "FslDistIndexDown": (
        {f"fsl_dist_index_version{{{REPLICA}}}": "1x60 stale"},
        {f"fsl_dist_index_version{{{REPLICA}}}": "1x180"},
    ),
    "FslDistIndexFails": (
        {
            f'fsl_dist_index_requests_total{{{REPLICA},status="200"}}': "0+95x180",
            f'fsl_dist_index_requests_total{{{REPLICA},status="500"}}': "0+5x180",
        },
        {
            f'fsl_dist_index_requests_total{{{REPLICA},status="200"}}': "0+95x180",
            f'fsl_dist_index_requests_total{{{REPLICA},status="422"}}': "0+5x180",
        },
    ),
    "FslDistIndexSlow": (
        {
            f'fsl_dist_index_request_seconds_bucket{{{REPLICA},le="1.0"}}': "0+90x180",
            f'fsl_dist_index_request_seconds_bucket{{{REPLICA},le="2.5"}}': "0+100x180",
            f'fsl_dist_index_request_seconds_bucket{{{REPLICA},le="+Inf"}}': "0+100x180",
        },
        {
            f'fsl_dist_index_request_seconds_bucket{{{REPLICA},le="1.0"}}': "0+100x180",
            f'fsl_dist_index_request_seconds_bucket{{{REPLICA},le="+Inf"}}': "0+100x180",
        },
    ),
    "FslDistIndexRefuses": (
        {f'fsl_dist_index_refused_total{{{NAMESPACE},status="503",reason="searches"}}': "0+60x180"},
        {f'fsl_dist_index_refused_total{{{NAMESPACE},status="401",reason="token"}}': "0+60x180"},
    ),
    "FslDistIndexVersionsDiffer": (
        {
            f'fsl_dist_index_version{{{NAMESPACE},replica="r"}}': "3x180",
            f'fsl_dist_index_version{{{NAMESPACE},replica="s"}}': "4x180",
        },
        {
            f'fsl_dist_index_version{{{NAMESPACE},replica="r"}}': "4x180",
            f'fsl_dist_index_version{{{NAMESPACE},replica="s"}}': "4x180",
        },
    ),
    "FslDistIndexRecallLow": (
        {f'fsl_dist_index_recall_at_10{{{REPLICA},version="3"}}': "0.8x180"},
        {f'fsl_dist_index_recall_at_10{{{REPLICA},version="3"}}': "0.97x180"},
    ),
    "FslDistSweepTrialsFail": (
        {
            f'ray_fsl_dist_sweep_trials{{{SWEEP},state="failed"}}': "4x180",
            f"ray_fsl_dist_sweep_trials_wanted{{{SWEEP}}}": "10x180",
        },
        {
            f'ray_fsl_dist_sweep_trials{{{SWEEP},state="failed"}}': "4x180",
            f"ray_fsl_dist_sweep_trials_wanted{{{SWEEP}}}": "40x180",
        },
    ),
    "FslDistSweepIdle": (
        {
            f'ray_resources{{{CLUSTER},Name="CPU",State="USED"}}': "2x180",
            f'ray_resources{{{CLUSTER},Name="CPU",State="AVAILABLE"}}': "6x180",
            f'ray_fsl_dist_sweep_trials{{{CLUSTER},sweep="s",state="running"}}': "2x180",
        },
        {
            f'ray_resources{{{CLUSTER},Name="CPU",State="USED"}}': "2x180",
            f'ray_resources{{{CLUSTER},Name="CPU",State="AVAILABLE"}}': "6x180",
            f'ray_fsl_dist_sweep_trials{{{CLUSTER},sweep="s",state="running"}}': "0x180",
        },
    ),
}


def test_objects_are_those_of_the_prometheus_operator() -> None:
    objects = build(MONITORING)
    assert [one["kind"] for one in objects] == ["PodMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"]
    assert [fault for one in objects for fault in schema_faults(one)] == []
    assert {one["metadata"]["namespace"] for one in objects} == {"fsl-dist"}
    spoilt = build(MONITORING)[0]
    spoilt["spec"]["podMetricsEndpoints"][0]["path"] = 5
    spoilt["spec"]["selectors"] = {}
    assert len(schema_faults(spoilt)) == 2


def test_every_pod_of_a_job_or_service_is_scraped_where_it_exports() -> None:
    ray, index = (one["spec"] for one in build(MONITORING) if one["kind"] == "PodMonitor")
    # KubeRay's own label, of each pod of a Ray cluster.
    assert ray["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    groups = [one for one in build(ROOT / "k8s" / "overlays" / "cpu") if one["apiVersion"] == "ray.io/v1"]
    for one in groups:
        for pod in pod_specs(one):
            for container in pod["containers"]:
                ports = {port["name"] for port in container.get("ports", [])}
                if container["name"] in ("ray-head", "ray-worker"):
                    assert ray["podMetricsEndpoints"][0]["port"] in ports
                    assert (index["podMetricsEndpoints"][0]["port"] in ports) == (one["kind"] == "RayService")
    service = next(one for one in groups if one["kind"] == "RayService")
    labels = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert index["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_a_query_is_promql(query: Query) -> None:
    promql_parser.parse(query.text)


def test_what_is_not_exported_is_found() -> None:
    samples = read_samples('a{x="1"} 2\nb{x="2",y="3"} 4\n')
    assert (
        unanswered(Query("q", 'max by (x, namespace) (a{x=~"$v"}) / sum by (x) (b{y!="4"})'), samples) == []
    )
    assert unanswered(Query("q", 'sum(rate({__name__=~"a|c", x="1"}[5m]))'), samples) == []
    for wrong in ("c", 'a{x="2"}', 'a{x!~"1|2"}', "rate(b_total[5m])", "max by (y) (a)"):
        assert len(unanswered(Query("q", wrong), samples)) == 1, wrong


def test_dashboards_are_complete() -> None:
    boards = dashboards()
    assert set(boards) == {"training", "index", "sweeps"}
    assert len({board["uid"] for board in boards.values()}) == 3
    for board in boards.values():
        variables = {variable["name"] for variable in board["templating"]["list"]}
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, "panels overlap"
            assert max(x for x, _ in cells) < 24
            taken |= cells
            assert panel["description"]
            for target in panel["targets"]:
                assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
        assert variables >= {"datasource"}


def test_each_alert_has_a_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", PAGE.read_text(), re.M)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/how_to/monitoring.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed"
)
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    assert set(FIRES) == {rule["alert"] for rule in rules()}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules()}]}))
    subprocess.run(["promtool", "check", "rules", file], check=True, capture_output=True)
    cases = []
    for alert, (wrong, well) in FIRES.items():
        for series in (wrong, well):
            wanted = [] if series is well else [{}]
            cases.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                            "eval_time": "3h",
                            "exp_samples": [{"labels": "{}", "value": 1}] if wanted else [],
                        }
                    ],
                }
            )
    tests = {"rule_files": [str(file)], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    found = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
