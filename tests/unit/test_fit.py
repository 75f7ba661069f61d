"""A fit's request, its data, its scores and choice, its record: what needs no training."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fsl_dist
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.heads import Embedded, HeadConfig
from fsl_dist.training.splits import split_run
from index.base.errors import ConfigError, RequestError
from tune.fit import networks
from tune.fit.budget.clock import Clock
from tune.fit.budget.plan import FitPlan
from tune.fit.budget.planning import Rates
from tune.fit.budget.prepare import reconsider
from tune.fit.budget.rates import find_batch
from tune.fit.config import check_same, read_request, read_stored, write_request
from tune.fit.data import look_at, open_parts
from tune.fit.finish import SHOWN_HEADS, shown_heads
from tune.fit.packing import describe_nesting, describe_table, open_or_pack, pack_options
from tune.fit.records import CandidateRecord, FitRecord, ScoreRecord
from tune.fit.runs import build_config
from tune.fit.scoring import (
    FROZEN_SE,
    SIMPLE_HEAD,
    Scored,
    choose,
    difference,
    exceeds,
    plain,
    score_networks,
    top_heads,
)


def request(folder: Path, *settings: str, minutes: float = 1.0, **more: object):
    return read_request(folder, minutes=minutes, settings=settings, final=more.get("final", "auto"), seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "minutes", "message"),
    [
        ((), 0.0, r"minutes=0 must be above 0"),
        ((), -1.0, r"minutes=-1 must be above 0"),
        ((), float("nan"), r"minutes=nan must be above 0"),
        (("metric=f1",), 1.0, r'metric="f1" must be balanced, acc or mcr'),
        (("holdout=1",), 1.0, r"holdout=1 must be above 0 and below 1"),
        (("method.kindd=pcn",), 1.0, r"unknown key method\.kindd .*did you mean method\.kind\?"),
        (("run.dir=x",), 1.0, r"run\.dir is not a setting of a fit: dir names"),
        (("training.epochs=3",), 1.0, r"training\.epochs is not a setting of a fit: minutes limits"),
        (("workers.num=2",), 1.0, r"workers\.num is not a setting of a fit"),
        (
            ("pack.label_colum=x",),
            1.0,
            r"pack has no such argument; did you mean pack\.label_column",
        ),
    ],
)
def test_a_bad_request_is_one_line(tmp_path: Path, settings: tuple, minutes: float, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        request(tmp_path, *settings, minutes=minutes)
    assert "\n" not in str(raised.value)


def test_a_request_is_read_back_and_held_against_another(tmp_path: Path) -> None:
    config = request(tmp_path, "metric=acc", "backbone.name=conv4", "pack.dedupe=phash", "data.mean=[0.5]")
    write_request(tmp_path, config)
    assert read_stored(tmp_path) == config
    check_same(config, read_stored(tmp_path), tmp_path)
    with pytest.raises(RequestError, match=r"minutes=2\.0 differs from the 1\.0 of the fit"):
        check_same(request(tmp_path, minutes=2.0), config, tmp_path)


def test_a_missing_folder_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"nowhere: no such folder"):
        fsl_dist.fit(
            tmp_path / "nowhere", dir=out, minutes=1, settings={"backbone.pretrained": False}, progress=False
        )
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(RequestError, match="is not empty and contains no fit"):
        fsl_dist.fit(tmp_path, dir=tmp_path / "full", minutes=1, progress=False)
    with pytest.raises(ConfigError, match="contains no finished fit"):
        fsl_dist.Fit(tmp_path)


def test_weights_that_are_not_there_are_named_first(tmp_path: Path, digits: Path) -> None:
    settings = {"backbone.weights": str(tmp_path / "none.pth")}
    with pytest.raises(RequestError, match=r"none\.pth"):
        fsl_dist.fit(digits, dir=tmp_path / "out", minutes=1, settings=settings, progress=False)


def write_images(folder: Path, names: list[str], seed: int = 0) -> None:
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(path)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_folder_is_packed_by_what_it_holds(tmp_path: Path) -> None:
    names = [f"{label}/{n}.png" for label in "ab" for n in range(4)]
    write_images(tmp_path, names)
    assert pack_options(tmp_path, {}) == {"fractions": (0.8, 0.0, 0.2)}
    assert pack_options(tmp_path, {"fractions": (0.5, 0.2, 0.3)}) == {"fractions": (0.5, 0.2, 0.3)}
    table = tmp_path / "labels.csv"
    write_table(table, [{"file": name, "class": name[0], "lesion_id": name[2]} for name in names])
    found = pack_options(tmp_path, {})
    assert found == {
        "table": str(table), "keep_together": "lesion_id", "group_column": "lesion_id", "fractions": (0.8, 0.0, 0.2)
    }  # fmt: skip
    splits = ["train", "train", "val", "test"] * 2
    write_table(
        table,
        [{"file": name, "class": name[0], "split": split} for name, split in zip(names, splits, strict=True)],
    )
    assert pack_options(tmp_path, {}) == {"table": str(table), "split_column": "split"}
    write_table(table, [{"file": name, "class": name[0], "split": "background"} for name in names])
    assert "split_column" not in pack_options(tmp_path, {})
    # A table of something else is none.
    write_table(table, [{"image": name, "price": "3"} for name in names])
    assert pack_options(tmp_path, {}) == {"fractions": (0.8, 0.0, 0.2)}
    for split in ("train", "test"):
        shutil.copytree(tmp_path / "a", tmp_path / "split" / split / "a")
    assert pack_options(tmp_path / "split", {}) == {}


def test_longer_names_of_splits_are_left_to_pack(tmp_path: Path) -> None:
    for seed, split in enumerate(("seg_train", "seg_test")):
        write_images(tmp_path / "in", [f"{split}/{label}/{n}.png" for label in "ab" for n in range(5)], seed)
    data = open_or_pack(request(tmp_path / "in"), tmp_path / "out", progress=False)
    assert data.split_names == ["train", "test"]
    assert data.class_names == ["a", "b"]


def test_what_pack_refuses_names_the_settings_of_a_fit(tmp_path: Path) -> None:
    write_images(tmp_path / "in", ["1.png", "2.png"])
    with pytest.raises(RequestError, match=r"no class folders .*is packed with pack\.table=") as caught:
        open_or_pack(request(tmp_path / "in"), tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)


def test_folders_of_folders_of_folders_are_pointed_out(tmp_path: Path) -> None:
    write_images(tmp_path / "deep", [f"{a}/{b}/{n}.png" for a in "xw" for b in "yz" for n in range(3)])
    (warning,) = describe_nesting(tmp_path / "deep")
    assert "The classes are the 2 folders of deep ('w', 'x')" in warning
    write_images(tmp_path / "flat", [f"{a}/{n}.png" for a in "xw" for n in range(3)])
    assert describe_nesting(tmp_path / "flat") == []
    write_images(
        tmp_path / "splits", [f"{a}/{b}/{n}.png" for a in ("train", "test") for b in "yz" for n in range(3)]
    )
    assert describe_nesting(tmp_path / "splits") == []


def test_a_table_whose_files_are_missing_is_one_line(tmp_path: Path) -> None:
    write_table(tmp_path / "labels.csv", [{"file": f"{n}.png", "class": str(n % 2)} for n in range(6)])
    with pytest.raises(RequestError) as raised:
        open_or_pack(request(tmp_path), tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)


def test_one_class_is_refused_and_copies_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "one", [f"a/{n}.png" for n in range(10)])
    data = open_or_pack(request(tmp_path / "one"), tmp_path / "out-one", progress=False)
    with pytest.raises(RequestError, match="8 training images of one class, 'a'"):
        open_parts(data, request(tmp_path / "one"))
    for split in ("train", "test"):
        write_images(tmp_path / "two", [f"{split}/{label}/{n}.png" for label in "ab" for n in range(5)])
    write_images(tmp_path / "two", ["train/lone/0.png"], seed=7)
    config = request(tmp_path / "two")
    data = open_or_pack(config, tmp_path / "out-two", progress=False)
    profile, warnings = look_at(data, open_parts(data, config))
    assert (profile.copies_across, profile.lone_classes, profile.is_grey) == (10, 1, False)
    assert any("10 test or val images are byte for byte training images" in line for line in warnings)
    assert any("1 of 3 classes have one training image" in line for line in warnings)


def test_parts_differ_and_leave_no_image_out(digits: Path, base_novel: Path) -> None:
    parts = open_parts(Catalogue.open(digits), request(digits))
    assert parts.are_cut
    first, second = parts.part(0), parts.part(1)
    for part in (first, second):
        assert np.array_equal(
            np.sort(np.concatenate([part.rest.ids, part.held.ids])), parts.catalogue.select("train").ids
        )
    assert not np.array_equal(first.held.ids, second.held.ids)
    assert len(parts.test_ids) == 100
    # A val split next to a test split is used as it is.
    own = open_parts(Catalogue.open(base_novel), request(base_novel))
    assert not own.are_cut
    assert np.array_equal(own.part(0).held.ids, np.asarray(own.catalogue.split_ids("val")))
    assert np.array_equal(own.part(3).held.ids, own.part(0).held.ids)
    # A final run on everything: as its settings say it, and no image of a class that is not trained on.
    for one, train_on_val in ((parts, False), (own, True)):
        point = {"data.train_on_val": train_on_val, "data.holdout_fraction": 0.0}
        splits = split_run(one.catalogue, build_config(point, one, Path("run")))
        assert np.array_equal(splits.train.ids, one.whole.rest.ids)
        assert np.array_equal(splits.train.labels, one.classes)
        assert splits.stop is None
    assert len(own.whole.rest) == len(own.part(0).rest) + len(own.part(0).held)


def test_grey_images_are_seen_and_their_pixels_measured(digits: Path) -> None:
    data = Catalogue.open(digits)
    profile, _ = look_at(data, open_parts(data, request(digits)))
    assert profile.is_grey
    assert len(profile.mean) == len(profile.std) == 1
    assert 0.1 < profile.mean[0] < 0.6


def embedded(seed: int, spread: float, num: int = 120) -> Embedded:
    """Three classes about centres of distance 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    vectors = np.eye(3, 8)[labels] * 2 + spread * rng.normal(size=(num, 8))
    return Embedded(
        ids=np.arange(num) + 1000 * seed, vectors=vectors.astype(np.float32), labels=labels.astype(np.int64)
    )


def test_the_better_network_is_chosen_and_equal_ones_are_named() -> None:
    classes = np.arange(3)
    good = score_networks("good", [(embedded(1, 0.5), embedded(2, 0.5))], classes, cost=1)
    same = score_networks("same", [(embedded(1, 0.5), embedded(2, 0.5))], classes, cost=2)
    bad = score_networks("bad", [(embedded(1, 3.0), embedded(2, 3.0))], classes, cost=0)
    for metric in ("balanced", "acc", "mcr"):
        choice = choose([*bad, *good, *same], metric)  # type: ignore[arg-type]
        assert choice.chosen.recipe == "good"
        assert {one.recipe for one in choice.equal} >= {"same"}
        assert not {one.recipe for one in choice.equal} & {"bad"}
        assert difference(choice.best, bad[0], metric).is_more_than_noise  # type: ignore[arg-type]
        assert difference(good[0], same[0], metric).value == 0  # type: ignore[arg-type]


def test_the_frozen_network_is_chosen_only_if_it_is_clearly_better() -> None:
    """Few validation images: by a little luck the frozen network's value is the highest."""
    classes = np.arange(3)

    def score(recipe: str, spread: float, cost: int, seed: int = 2) -> Scored:
        head, held = HeadConfig(kind="prototypes"), embedded(seed, spread, num=30)
        parts = [(embedded(1, spread), replace(held, ids=np.arange(30)))]
        found = score_networks(recipe, parts, classes, cost=cost, is_trained=cost > 0)
        return next(one for one in found if plain(one.head) == head)

    for metric in ("balanced", "acc", "mcr"):
        frozen, close, bad = score("frozen", 1.0, 0, 3), score("close", 0.9, 1), score("bad", 3.0, 2)
        assert frozen.value(metric) > close.value(metric)
        assert not exceeds(frozen, close, metric, FROZEN_SE)
        choice = choose([frozen, close, bad], metric)
        assert (choice.chosen, choice.best) == (close, frozen)
        assert close in choice.equal
        assert exceeds(frozen, bad, metric, FROZEN_SE)
        assert choose([frozen, bad], metric).chosen is frozen


def test_the_chosen_head_is_listed_wherever_it_stands() -> None:
    train, part = embedded(0, 2.0), embedded(1, 2.0)
    scored = score_networks("frozen", [(train, part)], np.arange(3), cost=0, is_trained=False)
    ranked = top_heads(scored, "balanced", len(scored))
    last = ranked[-1]
    assert last not in shown_heads(scored, "balanced", ())
    assert shown_heads(scored, "balanced", {last.name}) == [*ranked[:SHOWN_HEADS], last]


def test_a_table_with_other_columns_is_pointed_out(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png"])
    assert describe_table(tmp_path, {}) == []
    write_table(tmp_path / "labels.csv", [{"filename": "a/1.png", "label": "x"}])
    (warning,) = describe_table(tmp_path, {})
    assert "filename, label" in warning
    assert describe_table(tmp_path, {"path_column": "filename", "label_column": "label"}) == []


def test_of_two_fits_in_one_folder_one_is_refused(tmp_path: Path) -> None:
    config = request(tmp_path)
    out = tmp_path / "out"
    write_request(out, config)
    with pytest.raises(RequestError, match=r"dir=.*: another fit has just begun there"):
        write_request(out, config)
    assert read_stored(out) == config
    assert [path.name for path in out.iterdir()] == ["fit-config.yaml"]


def test_scores_of_several_parts_count_together() -> None:
    classes = np.arange(3)
    parts = [(embedded(1, 1.0), embedded(2, 1.0)), (embedded(3, 1.0), embedded(4, 1.0, num=60))]
    joined = score_networks("x", parts, classes, cost=1)
    for one in joined:
        assert one.score.n == 180
        assert one.parts == (120, 60)
        right = sum(part.is_right.sum() for part in one.of_parts)
        assert one.score.acc == pytest.approx(right / 180)
    assert {one.head.kind for one in joined} == {"prototypes", "knn", "logistic"}


def test_few_validation_images_do_not_choose_the_frozen_network_s_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors without any information about the classes: the best of all heads on 20 validation images looks good."""
    rng = np.random.default_rng(0)
    write_images(tmp_path / "images", [f"{label}/{n}.png" for label in range(4) for n in range(30)])
    fsl_dist.pack(tmp_path / "images", tmp_path / "packed", fractions=(0.5, 0.17, 0.33), progress=False)
    parts = open_parts(Catalogue.open(tmp_path / "packed"), request(tmp_path / "packed"))
    assert not parts.are_cut
    assert len(parts.part(0).held) == 20
    noise = Embedded(
        ids=np.arange(120),
        vectors=rng.standard_normal((120, 16)).astype(np.float32),
        labels=parts.catalogue.labels,
        groups=None,
        logits=None,
    )
    monkeypatch.setattr(networks, "embed_run", lambda *_: noise)
    every = networks.score_frozen("frozen", tmp_path, parts, [0], tmp_path)
    heads = networks.preselect_heads(tmp_path, parts, tmp_path, "balanced")
    kept = networks.score_frozen("frozen", tmp_path, parts, [0], tmp_path, heads)
    assert len(every) > 10
    assert {plain(one.head) for one in kept} == set(heads)
    assert 1 <= len(heads) <= 2
    assert SIMPLE_HEAD in heads
    luckiest = max(one.value("balanced") for one in every)
    assert luckiest > 0.33  # chance is 0.25
    assert max(one.value("balanced") for one in kept) < luckiest
    # With more validation images all heads are compared on them.
    monkeypatch.setattr(networks, "FEW_VALIDATION", 20)
    assert networks.preselect_heads(tmp_path, parts, tmp_path, "balanced") == []


def test_batches_are_halved_until_they_fit() -> None:
    said: list[str] = []

    def measure(batch: int) -> Rates:
        if batch > 30:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return Rates(trial=1.0, final=1.0, embed=1.0, size=64)

    assert find_batch(measure, 96, said.append)[1] == 24
    assert len(said) == 2

    def never(batch: int) -> Rates:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RequestError, match="memory does not suffice for a batch of 12 images"):
        find_batch(never, 96, said.append)
    with pytest.raises(RuntimeError, match="another"):
        find_batch(lambda _: (_ for _ in ()).throw(RuntimeError("another")), 96, said.append)


def test_the_record_is_read_back(tmp_path: Path, digits: Path) -> None:
    data = Catalogue.open(digits)
    profile, _ = look_at(data, open_parts(data, request(digits)))
    score = ScoreRecord(n=9, parts=1, acc=0.5, mcr=0.4, acc_interval=(0.2, 0.8), mcr_interval=(0.1, 0.7))
    one = CandidateRecord(name="x", round=0, settings={}, run="", head={"kind": "knn"}, validation=score)
    record = FitRecord(
        profile=profile, metric="balanced", budget_s=60.0, spent_s={"pack": 1.0}, candidates=[one], equal=[], chosen="x",
        final_run="frozen",
    )  # fmt: skip
    record.write(tmp_path)
    assert FitRecord.read(tmp_path) == record
    assert record.final == one


def test_seconds_go_on_after_a_kill(tmp_path: Path) -> None:
    import time

    clock = Clock(tmp_path, 100.0, time.monotonic() - 30)
    with clock.phase("look"):
        clock.write()
    again = Clock(tmp_path, 100.0, time.monotonic() - 5)
    assert 35 <= again.used_s < 36
    assert 64 < again.left_s <= 65
    assert 30 <= again.by_phase()["start"] < 36


def test_training_is_decided_again_once_images_were_embedded(tmp_path: Path, digits: Path) -> None:
    """Rates that a busy moment made ten times too low do not end a fit without training."""
    data, config = Catalogue.open(digits), request(digits, minutes=2)
    profile, _ = look_at(data, open_parts(data, config))
    plan = FitPlan(
        profile=profile, backbone={}, has_weights=False, size=16, scratch_size=16, batch_size=8, freeze=0, slots=2, cpus=1,
        gpus=0.0, joins=False, rates=Rates(trial=0.5, final=0.5, embed=1.0, size=16), trains=False,
    )  # fmt: skip
    # 220 images at 10 a second: training makes 5 a second, and 60 s show 96 images three times.
    found = reconsider(plan, config, 100.0, 22.0, 96)
    assert found.trains
    assert found.rates == Rates(trial=5.0, final=5.0, embed=10.0, size=16)
    found.write(tmp_path)
    assert FitPlan.read(tmp_path) == found
    slow = reconsider(plan, config, 100.0, 220.0, 96)
    assert not slow.trains
    assert "The budget is too small to train" in slow.notes[-1]
