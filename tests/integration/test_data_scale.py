"""A million rows, a hundred thousand classes, more shards than file handles; each in a process of its own."""

import io
import json
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from fsl_dist.data.catalogue import CatalogueMetadata, ShardFile, write_catalogue

pytestmark = pytest.mark.integration

NUM_ROWS, NUM_CLASSES, NUM_SHARDS = 1_000_000, 100_000, 500

OPEN_AND_DRAW = """
import json, sys, time
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.samplers.episode import EpisodeConfig, draw_episode, fit_selection

def status_mb(name):
    with open("/proc/self/status") as file:
        (kb,) = (int(line.split()[1]) for line in file if line.startswith(name))
    return kb * 1.024e-3

before_mb, started = status_mb("VmRSS:"), time.perf_counter()
catalogue = Catalogue.open(sys.argv[1])
config = EpisodeConfig(n_way=20, k_shot=1, n_query=1)
train = fit_selection(catalogue.select("train"), config, catalogue.class_names)
episode = draw_episode(train, config, seed=0, epoch=0, number=0)
catalogue.locate(episode.support.ravel())
took_s = time.perf_counter() - started
print(json.dumps({"s": took_s, "mb": status_mb("VmHWM:") - before_mb, "n": len(train), "ways": train.num_classes}))
"""


def run_program(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_million_rows_open_and_draw_within_a_second_and_200_mb(tmp_path):
    rows = np.arange(NUM_ROWS)
    zeros = np.zeros(NUM_ROWS, dtype=np.int64)
    (tmp_path / "catalogue").mkdir()
    write_catalogue(
        tmp_path / "catalogue" / "000001.arrow",
        {
            "key": [f"sample-{row:07d}" for row in range(NUM_ROWS)],
            "shard": rows % NUM_SHARDS,
            "offset": zeros + 512,
            "size": zeros + 100,
            "label": rows % NUM_CLASSES,
            "group": zeros - 1,
            "blind_group": zeros - 1,
            "split": np.where(rows % 10 < 8, 0, 2),
            "width": zeros + 64,
            "height": zeros + 64,
            "crc32": zeros,
        },
        CatalogueMetadata(
            class_names=[f"class-{label:06d}" for label in range(NUM_CLASSES)],
            shards=[ShardFile(f"shards/shard-{shard:06d}.tar", 10**9) for shard in range(NUM_SHARDS)],
            options={},
        ),
    )
    found = run_program(OPEN_AND_DRAW, tmp_path)
    assert (found["n"], found["ways"]) == (800_000, 80_000)
    assert found["s"] < 1
    assert found["mb"] < 200


STREAM = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import numpy as np
from fsl_dist.data.config import DataConfig
from fsl_dist.data.loader import Loader, Request, open_source
from fsl_dist.samplers.scan import scan_batches
from fsl_dist.samplers.shuffled import shuffled_batch, shuffled_steps

config = DataConfig(dataset=sys.argv[1], decoder="torchvision", image_size=8, resize_size=8, channels=1, flip=False,
                    mean=(0.0,), std=(1.0,), threads=4, max_read_gap_bytes=0)
source = open_source(config, seed=0)
train = source.catalogue.select("train")
steps = range(shuffled_steps(train, 100))
epoch = (Request(shuffled_batch(train, batch_size=100, seed=0, epoch=0, step=step), 0) for step in steps)
greys = np.empty(source.catalogue.num_samples)
most = 0
for request, images in Loader(source, epoch):
    greys[request.ids] = images.mean(dim=(1, 2, 3)).numpy() * 255
    most = max(most, len(os.listdir("/proc/self/fd")))
print(json.dumps({"greys": greys.round().astype(int).tolist(), "most_open": most}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_an_epoch_streams_over_more_shards_than_file_handles(tmp_path):
    """300 shards, 128 handles, batches of 100 images from nearly 100 shards each."""
    num = 300
    (tmp_path / "shards").mkdir()
    (tmp_path / "catalogue").mkdir()
    shards, contents = [], []
    for number in range(num):
        buffer = io.BytesIO()
        Image.new("L", (8, 8), number % 256).save(buffer, "PNG")
        contents.append(buffer.getvalue())
        path = tmp_path / "shards" / f"{number:04d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(contents[-1])
            tar.addfile(member, io.BytesIO(contents[-1]))
        shards.append(ShardFile(f"shards/{path.name}", path.stat().st_size))
    same = np.zeros(num, dtype=np.int64)
    write_catalogue(
        tmp_path / "catalogue" / "000001.arrow",
        {
            "key": [f"{number:04d}" for number in range(num)],
            "shard": np.arange(num),
            "offset": same + 512,
            "size": [len(content) for content in contents],
            "label": same,
            "group": same - 1,
            "blind_group": same - 1,
            "split": same,
            "width": same + 8,
            "height": same + 8,
            "crc32": [zlib.crc32(content) for content in contents],
        },
        CatalogueMetadata(class_names=["grey"], shards=shards, options={}),
    )
    found = run_program(STREAM, tmp_path)
    assert found["greys"] == [number % 256 for number in range(num)]
    assert found["most_open"] < 128
