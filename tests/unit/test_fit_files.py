"""What a fit keeps: each damaged byte of its files is seen, by whoever reads the file and by `doctor`."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fsl_dist
from fsl_dist.data.catalogue import Catalogue
from index.base.errors import ConfigError, VersionError
from index.base.record_files import read_record
from tune.fit.budget.clock import CLOCK_FILE, Clock
from tune.fit.budget.plan import PLAN_FILE, FitPlan
from tune.fit.budget.planning import Rates
from tune.fit.config import FIT_FILE, read_request, read_stored, write_request
from tune.fit.data import look_at, open_parts
from tune.fit.records import RECORD_FILE, CandidateRecord, FitRecord

READERS: dict[str, Callable[[Path], object]] = {
    FIT_FILE: read_stored,
    PLAN_FILE: FitPlan.read,
    RECORD_FILE: FitRecord.read,
    CLOCK_FILE: lambda out: Clock(out, 60.0, time.monotonic()).spent_s,
}


@pytest.fixture
def fit(tmp_path: Path, digits: Path) -> Path:
    """The files of a fit, without its runs."""
    out = tmp_path / "fit"
    config = read_request(str(digits), minutes=1.0, settings=(), final="auto", seed=0)
    write_request(out, config)
    data = Catalogue.open(digits)
    profile, _ = look_at(data, open_parts(data, config))
    FitPlan(
        profile=profile, backbone={"data.mean": (0.5,)}, has_weights=False, size=16, scratch_size=16, batch_size=8, freeze=0,
        slots=2, cpus=1, gpus=0.0, joins=False, rates=Rates(trial=0.5, final=0.5, embed=1.0, size=16), trains=False,
    ).write(out)  # fmt: skip
    one = CandidateRecord(name="x", round=0, settings={}, run="", head={"kind": "knn"})
    FitRecord(
        profile=profile, metric="balanced", budget_s=60.0, spent_s={"pack": 1.0}, candidates=[one], equal=[], chosen="x",
        final_run="frozen",
    ).write(out)  # fmt: skip
    Clock(out, 60.0, time.monotonic()).write()
    return out


def test_sound_files_are_read(fit: Path) -> None:
    for read in READERS.values():
        read(fit)
    assert fsl_dist.doctor(fit).is_sound


@pytest.mark.parametrize("name", READERS)
def test_every_changed_byte_is_seen(fit: Path, name: str) -> None:
    path = fit / name
    sound, num_seen = READERS[name](fit), 0
    whole = path.read_bytes()
    step = max(1, len(whole) // 60)
    for place in range(0, len(whole) - 1, step):
        changed = whole[place] ^ 1
        if not whole[place : place + 1].strip() or not bytes([changed]).strip():
            continue  # white space of JSON means nothing
        path.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
        try:
            assert READERS[name](fit) == sound
            assert place < whole.index(b"\n")  # in the comment on top of YAML
        except (VersionError, ConfigError) as error:
            num_seen += 1
            is_one_line = name in str(error) and "\n" not in str(error)
            assert is_one_line, error  # noqa: PT017
    assert num_seen > 20
    found = fsl_dist.doctor(fit)
    assert [finding.path for finding in found.damaged] == [str(path)]


@pytest.mark.parametrize("name", READERS)
def test_files_of_an_earlier_version_get_a_checksum(fit: Path, name: str) -> None:
    path = fit / name
    lines = [line for line in path.read_text().splitlines() if "checksum" not in line]
    bare = "\n".join(lines).replace(",\n}", "\n}") + "\n"
    path.write_text(bare)
    READERS[name](fit)
    found = fsl_dist.doctor(fit, write_checksums=True)
    assert found.is_sound
    assert found.written == (str(path),)
    assert not fsl_dist.doctor(fit).without_checksum


def test_a_file_of_an_earlier_version_with_a_wrong_value_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text('{"trial": "fast", "final": 1.0, "embed": 1.0, "size": 64}')
    with pytest.raises(VersionError, match=r"rates\.json is damaged: trial: Input should be a valid number"):
        read_record(Rates, path, tmp_path)
