"""What every test runs under: capped threads, fixed seeds, no network, the real data where it is available.

All random numbers of a run follow from FSL_DIST_TEST_SEED (0 unless set) and Hypothesis draws the same examples each time, so
that a failure repeats. `pytest --hypothesis-profile=explore` draws new examples.
"""

import gc
import importlib.util
import os
import random
import secrets
import signal
import socket
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.helpers.object_store import ObjectStore

# Before torch, FAISS and BLAS read them. Tests are small and several processes run at once: with two threads each, which wait for
# one another by spinning, some took ten times as long.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray settles its authentication when it is imported, whichever test does that first.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A time limit of an example, or of drawing it, would make a slow machine a failure.
_UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("fixed", derandomize=True, **_UNTIMED)
hypothesis.settings.register_profile("explore", print_blob=True, **_UNTIMED)
hypothesis.settings.load_profile("fixed")

_SEED = int(os.environ.get("FSL_DIST_TEST_SEED", "0"))
_LOOPBACK = ("127.", "::1", "localhost")


def pytest_collection_finish() -> None:
    """Take what imports left, half a million objects, out of the garbage collector's rounds, of which each took 0.3 s."""
    gc.collect()
    gc.freeze()


_exit_status = 0


def pytest_sessionfinish(exitstatus: int) -> None:
    global _exit_status
    _exit_status = int(exitstatus)
    gc.unfreeze()  # DALI reports what it finds alive at the end


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process without Python's teardown where Ray was used in it.

    With Ray, DALI, FAISS, Arrow and a store's server in one process, which no command has, that teardown ended in a
    segmentation fault in one of two whole runs, after all tests had passed.
    """
    if "ray" in sys.modules and not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed_all(2 * _SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    # Other numbers than the fixtures drew, and the same whether this test made them or an earlier one.
    _seed_all(2 * _SEED + 1)


def _seed_all(seed: int) -> None:
    """Seed the global generators, so that what a test draws does not depend on the tests before it."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    if (torch := sys.modules.get("torch")) is not None:
        # torch.manual_seed() would queue a call with its stack trace for a GPU that nobody uses: 2 ms.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse connections that leave this machine (a name to look up, or another machine's address)."""
    try:
        own = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        own = set()
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host = str(address[0])
            if not host.startswith(_LOOPBACK) and host not in own:
                raise OSError(f"tests use no network; something wanted {address}")
        connect(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data's archives; the test is skipped where FSL_DIST_TEST_DATA does not name one."""
    folder = os.environ.get("FSL_DIST_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FSL_DIST_TEST_DATA does not name the folder of the real data's archives")
    return Path(folder)


@pytest.fixture(scope="session")
def omniglot(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Omniglot's images, unpacked."""
    out = tmp_path_factory.mktemp("omniglot")
    with tarfile.open(real_data / "omniglot.tar.gz") as archive:
        archive.extractall(out, filter="data")
    return out / "omniglot"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of scikit-learn's handwritten digits: 12 training and 10 test images of each class."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    scans = load_digits()
    source = tmp_path_factory.mktemp("digits")
    rows = ["file,class,split"]
    for label in range(10):
        for position, member in enumerate(np.flatnonzero(scans.target == label)[:22]):
            path = source / str(label) / f"{member}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8)).save(path)
            rows.append(f"{path.relative_to(source)},{label},{'train' if position < 12 else 'test'}")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed") / "digits"
    pack(source, out, PackOptions(columns=TableColumns(table=str(source / "labels.csv"), split="split")))
    return out


@pytest.fixture(scope="session")
def base_novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of the digits as 7 base and 3 novel classes, 24 images of each."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    scans = load_digits()
    source = tmp_path_factory.mktemp("images")
    for label in range(10):
        (source / str(label)).mkdir()
        for member in np.flatnonzero(scans.target == label)[:24]:
            scan = (scans.images[member] * (255 / 16)).astype(np.uint8)
            Image.fromarray(scan).save(source / str(label) / f"{member}.png")
    out = tmp_path_factory.mktemp("packed") / "digits"
    pack(source, out, PackOptions(split="base-novel", num_base=7))
    return out


@pytest.fixture(scope="session")
def damaged_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits (220 samples, of which 1 % are 2) with a bit flipped in samples 0 and 13, both of train."""
    import shutil

    from fsl_dist.data.catalogue import Catalogue

    out = tmp_path_factory.mktemp("damaged") / "digits"
    shutil.copytree(digits, out)
    catalogue = Catalogue.open(out)
    where = catalogue.locate([0, 13])
    with open(out / catalogue.shards[0].name, "r+b") as shard:
        for offset in where.offset.tolist():
            shard.seek(offset + 60)
            byte = shard.read(1)[0]
            shard.seek(offset + 60)
            shard.write(bytes([byte ^ 4]))
    return out


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of 40 × 48 px images of a disc on dark ground, with masks of the disc (254; a ring of 127 in it).

    Classes `blue` and `red <b>`, in each the groups of its small and its large discs: 8 training and 4 test images a group,
    the first test image of each group without a mask.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    source, rng = tmp_path_factory.mktemp("discs"), np.random.default_rng(0)
    rows = ["file,class,group,split,mask"]
    for name, colour in (("blue", (60, 90, 230)), ("red <b>", (220, 60, 40))):
        for group, radius in ((f"small {name}", 6), (f"large {name}", 13)):
            for number in range(12):
                file = f"{name[:3]}-{radius}-{number}.png"
                x, y = (int(place) for place in rng.integers(radius, [48 - radius, 40 - radius]))
                image = Image.fromarray(rng.integers(0, 40, (40, 48, 3), dtype=np.uint8))
                box = (x - radius, y - radius, x + radius, y + radius)
                ImageDraw.Draw(image).ellipse(box, colour)
                image.save(source / file)
                mask = Image.new("L", image.size)
                ImageDraw.Draw(mask).ellipse(box, fill=254, outline=127)
                mask.save(source / f"mask-{file}")
                split = "train" if number < 8 else "test"
                rows.append(f"{file},{name},{group},{split},{'' if number == 8 else f'mask-{file}'}")
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("packed") / "discs"
    columns = TableColumns(table=str(source / "labels.csv"), group="group", split="split", mask="mask")
    pack(source, out, PackOptions(columns=columns))
    return out


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["ObjectStore"]:
    """A real S3 server on loopback, for all tests that need one."""
    server = _load_helper("object_store").ObjectStore(tmp_path_factory.mktemp("s3") / "journal")
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: "ObjectStore", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of the test's own at the S3 server: s3://BUCKET/TEST; its working folders are in the test's folder."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSL_DIST_CACHE", str(tmp_path / "cache"))
    return f"s3://{s3_server.bucket}/{tmp_path.name}"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Continue like another machine, with separate working folders."""
    return lambda name: monkeypatch.setenv("FSL_DIST_CACHE", str(tmp_path / f"cache-{name}"))


def _load_helper(name: str) -> Any:
    """A module of tests/helpers, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "helpers" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
