"""What is public is what docs/reference/python_api.md lists, every name imports, and the example trains."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def listed(package):
    """Names in the first cells of the tables under the page's heading of `package`."""
    sections = re.split(
        r"^## ",
        (ROOT / "docs" / "reference" / "python_api.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    (section,) = (text for text in sections if text.startswith(f"{package}\n"))
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


PACKAGES = [
    "fsl_dist",
    "fsl_dist.data",
    "fsl_dist.samplers",
    "fsl_dist.losses",
    "fsl_dist.models",
    "fsl_dist.methods",
    "index",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_lists_what_is_public_and_all_of_it_imports(package):
    module = importlib.import_module(package)
    names = listed(package)
    assert len(names) == len(set(names))
    assert set(names) == set(module.__all__) - {"__version__"}
    assert dir(module) == sorted(module.__all__)
    for name in names:
        public = getattr(module, name)
        assert public.__name__.removeprefix(f"{package}.") == name
        assert public.__doc__, f"{package}.{name} does not say what it is"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


def documented():
    """(name, function) of every public function, and of the methods of a run and of an index's search."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            public = getattr(module, name)
            if inspect.isfunction(public):
                yield f"{package}.{name}", public
    run = importlib.import_module("fsl_dist.run").Run
    for name, method in inspect.getmembers(run, inspect.isfunction):
        if not name.startswith("_") and name != "close":
            yield f"Run.{name}", method
    yield "ShardedIndex.search", importlib.import_module("index").ShardedIndex.search


@pytest.mark.parametrize(("name", "function"), [pytest.param(*pair, id=pair[0]) for pair in documented()])
def test_docstrings_have_the_sections_that_tools_render(name, function):
    sections = re.split(r"^(\w+):\n", inspect.getdoc(function), flags=re.MULTILINE)
    texts = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert sections[0].strip()
    assert {"Returns", "Yields"} & texts.keys()
    described = re.findall(r"^    \**(\w+): \S", texts.get("Args", ""), flags=re.MULTILINE)
    assert described == [one for one in inspect.signature(function).parameters if one != "self"]


def test_importing_the_packages_loads_no_heavy_library():
    program = "import sys, fsl_dist, index; print([m for m in ('torch', 'ray', 'faiss', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.integration
def test_the_example_trains_in_a_plain_process(digits):
    spec = importlib.util.spec_from_file_location("own_trainer", ROOT / "examples" / "own_trainer.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    losses = example.train({"dataset": str(digits), "num_steps": 12})
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert example.train({"dataset": str(digits), "num_steps": 2}) == pytest.approx(losses[:2], rel=1e-4)
