"""The Helm chart, rendered by the template engine that Helm has: Go's, which kubectl has too.

Helm adds functions to the engine. The chart uses none of them, so this is the text that Helm writes.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "k8s" / "chart"


def is_renderable() -> bool:
    return shutil.which("kubectl") is not None


def default_values() -> dict[str, Any]:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def schema() -> dict[str, Any]:
    return json.loads((CHART / "values.schema.json").read_text())


def with_values(**changes: Any) -> dict[str, Any]:
    """The default values with others in their place, by dotted key with __ for the dots; checked as Helm checks them."""
    values = default_values()
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = values
        for parent in parents:
            part = part[parent]
        part[last] = value
    jsonschema.Draft7Validator(schema()).validate(values)
    return values


def render_text(values: dict[str, Any], namespace: str = "fsl-dist") -> str:
    """All templates as text."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    about = {"Name": "fsl-dist", "Namespace": namespace, "Service": "Helm"}
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "values"}}
    data |= {"Values": values, "Chart": chart, "Release": about}
    # One call for all: each takes 0.1 s.
    templates = [path.read_text() for path in sorted((CHART / "templates").glob("*.yaml"))]
    with tempfile.TemporaryDirectory() as folder:
        source, template = Path(folder) / "values.json", Path(folder) / "templates"
        source.write_text(json.dumps(data))
        template.write_text("\n".join(templates))
        command = [
            "kubectl",
            "label",
            "--local",
            "-f",
            str(source),
            "a=b",
            "-o",
            f"go-template-file={template}",
        ]
        found = subprocess.run(
            [*command, "--allow-missing-template-keys=false"], capture_output=True, text=True, check=False
        )
    assert found.returncode == 0, found.stderr
    return found.stdout


def render(values: dict[str, Any], namespace: str = "fsl-dist") -> list[dict]:
    """All objects."""
    return [one for one in yaml.safe_load_all(render_text(values, namespace)) if one]
