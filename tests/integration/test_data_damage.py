"""A run over a damaged data set, as a user sees it: it continues and reports what it left out, or ends in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fsl_dist.data.catalogue import Catalogue
from index.search import open_index

pytestmark = pytest.mark.integration

SETTINGS = (
    "backbone.name=conv4", "data.image_size=16", "data.resize_size=16", "data.channels=1", "method.kind=pcn",
    "episode.n_way=4", "episode.k_shot=3", "episode.n_query=2", "episode.per_epoch=20", "training.epochs=1",
    "data.decoder=torchvision",
)  # fmt: skip


def run(*arguments):
    """(exit code, stdout, stderr) of the command line."""
    done = subprocess.run(
        [sys.executable, "-c", "from cluster.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_run_goes_on_without_damaged_samples(damaged_digits, tmp_path):
    where = (f"data.dataset={damaged_digits}", f"run.dir={tmp_path / 'run'}")
    code, _, err = run("train", *SETTINGS, *where)
    assert code == 0
    for sample_id, key in zip((0, 13), Catalogue.open(damaged_digits).keys([0, 13]), strict=True):
        assert err.count(f"sample '{key}' (id {sample_id}) does not match its checksum") == 1
    code, out, err = run("index", "build", tmp_path / "run", damaged_digits, tmp_path / "index", "--json")
    assert code == 0
    train = Catalogue.open(damaged_digits).split_ids("train")
    left_out = np.intersect1d(train, [0, 13])
    assert json.loads(out)["num_vectors"] == len(train) - len(left_out) == len(train) - 2
    assert "2 of 120 rows have no vector and are left out of" in err
    assert "ids 0, 13" in err
    assert not np.isin(open_index(tmp_path / "index").ids, left_out).any()
    code, _, _ = run("index", "build", tmp_path / "run", damaged_digits, tmp_path / "index")
    assert code == 0
    assert len(list((tmp_path / "index" / "versions").iterdir())) == 2  # it may have been restored since


def test_too_much_damage_ends_the_run_in_one_line(damaged_digits, tmp_path):
    where = (f"data.dataset={damaged_digits}", f"run.dir={tmp_path / 'run'}", "data.max_bad_fraction=0.005")
    code, _, err = run("train", *SETTINGS, *where)
    assert code == 1
    (line,) = (line for line in err.splitlines() if "data.max_bad_fraction=0.005" in line)
    assert "2 of 220 samples" in line
    assert "Traceback" not in err
