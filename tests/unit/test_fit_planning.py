"""How a fit divides its budget: pure functions of rates, seconds and counts."""

import pytest

from tune.fit.budget.plan import FitPlan
from tune.fit.budget.planning import (
    FINAL_EPOCHS,
    LEAST_S,
    ROUND_EPOCHS,
    Overheads,
    Rates,
    choose_batch,
    choose_size,
    least_seconds,
    plan_rounds,
)
from tune.fit.recipes import PRETRAINED, SCRATCH, family_settings, list_recipes
from tune.fit.records import ProfileRecord
from tune.fit.runs import recipe_point

OVERHEADS = Overheads(startup=8.0, trial=3.0)


def profile(**changes: object) -> ProfileRecord:
    facts = {
        "dataset": "x", "num_images": 1000, "num_classes": 10, "splits": {"train": 800, "test": 200}, "largest_class": 100,
        "smallest_class": 5, "lone_classes": 0, "num_groups": 0, "shorter_side": 256, "is_grey": False, "copies_across": 0,
        "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), **changes,
    }  # fmt: skip
    return ProfileRecord(**facts)  # type: ignore[arg-type]


def test_rates_fall_with_the_area_of_the_images() -> None:
    rates = Rates(trial=100.0, final=180.0, embed=400.0, size=96)
    assert rates.at(192) == Rates(trial=25.0, final=45.0, embed=100.0, size=192)
    assert rates.at(96) == rates


@pytest.mark.parametrize(
    ("final_s", "own_px", "expected"),
    [(100, 256, 96), (400, 256, 192), (10_000, 256, 224), (10_000, 130, 128), (1, 256, 64), (10_000, 20, 64)],
)
def test_the_size_is_the_largest_that_twenty_epochs_fit_for(
    final_s: float, own_px: int, expected: int
) -> None:
    size = choose_size(180.0, 96, final_s, 900, own_px)
    assert size == expected
    rate = 180.0 * (96 / size) ** 2
    assert size == 64 or rate * final_s >= FINAL_EPOCHS * 900


def test_batches_are_96_but_for_small_data() -> None:
    assert [choose_batch(n) for n in (20, 240, 768, 10**6)] == [8, 30, 96, 96]


def test_a_candidate_sees_each_image_four_times_or_trains_for_four_seconds() -> None:
    assert least_seconds(100.0, 1000) == ROUND_EPOCHS * 10
    assert least_seconds(1e6, 1000) == LEAST_S


@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("available_s", [5, 30, 60, 120, 600, 3600])
@pytest.mark.parametrize("can_repeat", [False, True])
def test_rounds_fit_into_their_time(slots: int, available_s: float, can_repeat: bool) -> None:
    least_s = 10.0
    rounds = plan_rounds(
        available_s, slots=slots, least_s=least_s, overheads=OVERHEADS, num_recipes=7, can_repeat=can_repeat
    )
    used = OVERHEADS.startup
    for one in rounds:
        waves = -(-one.candidates * one.parts // slots)
        used += waves * (one.seconds + OVERHEADS.trial)
        assert one.seconds >= least_s
        assert 2 <= one.candidates <= 7
    assert not rounds or used <= available_s + 1e-6
    if len(rounds) == 2:
        first, second = rounds
        assert second.candidates == 2
        assert second.seconds >= 1.5 * first.seconds or (can_repeat and first.candidates == 7)
        assert can_repeat or second.parts == 1


def test_too_little_time_or_one_recipe_makes_no_round() -> None:
    shared = {"slots": 2, "least_s": 10.0, "overheads": OVERHEADS, "can_repeat": True}
    assert plan_rounds(20.9, num_recipes=7, **shared) == []
    assert len(plan_rounds(21.1, num_recipes=7, **shared)) == 1
    assert plan_rounds(1000, num_recipes=1, **shared) == []


def test_a_busy_machine_starts_slowly() -> None:
    assert Overheads.after_start(2.6) == Overheads(startup=8.0, trial=3.0)
    assert Overheads.after_start(10.0) == Overheads(startup=10.0, trial=7.0)


def test_recipes_follow_the_data_and_the_weights() -> None:
    assert list_recipes(profile(), has_weights=True, given={}) == list(PRETRAINED)
    assert list_recipes(profile(), has_weights=False, given={}) == list(SCRATCH)
    small = list_recipes(profile(shorter_side=32), has_weights=True, given={})
    assert [one.family for one in small[:4]] == ["scratch", "pretrained", "scratch", "pretrained"]
    assert any(
        one.settings["method.kind"] == "pcn"
        for one in list_recipes(profile(smallest_class=40), has_weights=True, given={})
    )


def test_settings_given_leave_out_what_says_otherwise() -> None:
    found = list_recipes(profile(), has_weights=True, given={"method.kind": "cross_entropy"})
    assert {one.settings["method.kind"] for one in found} == {"cross_entropy"}
    (only,) = list_recipes(profile(), has_weights=True, given={"method.kind": "triplet"})
    assert only.settings == {}
    # A network that is named is taken, with weights or without.
    named = list_recipes(profile(shorter_side=28), has_weights=False, given={"backbone.name": "resnet18"})
    assert {one.family for one in named} == {"pretrained"}


def plan_of(**changes: object) -> FitPlan:
    facts = {
        "profile": profile(shorter_side=28, is_grey=True), "has_weights": True, "size": 64, "scratch_size": 28, "batch_size": 96,
        "backbone": {"backbone.name": "mobilenet_v2", "backbone.weights": "w.pth", "backbone.pretrained": False}, "freeze": 0,
        "slots": 2, "cpus": 1, "gpus": 0.0, "joins": False, **changes,
    }  # fmt: skip
    return FitPlan(**facts)  # type: ignore[arg-type]


def test_weights_given_are_the_pretrained_networks() -> None:
    given = {"backbone.weights": "w.pth", "data.rotation": 5.0}
    plan = plan_of()
    small, pretrained = plan.recipes(given)[:2]
    assert (small.family, pretrained.family) == ("scratch", "pretrained")
    assert recipe_point(plan, pretrained, given)["backbone.weights"] == "w.pth"
    found = recipe_point(plan, small, given)
    assert (found["backbone.name"], found.get("backbone.weights", ""), found["data.rotation"]) == (
        "conv4",
        "",
        5.0,
    )
    # Without weights the settings are those of the only network.
    narrow = recipe_point(plan_of(has_weights=False), small, {"backbone.width": 16})
    assert narrow["backbone.width"] == 16


@pytest.mark.parametrize(
    ("pretrained", "trained", "frozen"),
    [
        ("trained", {"scratch", "pretrained"}, "pretrained"),
        ("frozen", {"scratch"}, "pretrained"),
        ("unused", {"scratch"}, "scratch"),
    ],
)
def test_small_networks_take_the_place_of_one_that_takes_too_long(
    pretrained: str, trained: set[str], frozen: str
) -> None:
    plan = plan_of(pretrained=pretrained)
    assert {one.family for one in plan.recipes({})} == trained
    assert plan.frozen_recipe({}).family == frozen
    photographs = plan_of(profile=profile())
    assert photographs.frozen_recipe({}).family == "pretrained"
    assert plan_of(has_weights=False).frozen_recipe({}).family == "scratch"


def test_signs_are_not_mirrored() -> None:
    backbone = {"backbone.name": "mobilenet_v2"}
    for family in ("pretrained", "scratch"):
        for is_grey in (False, True):
            found = family_settings(
                family, profile(is_grey=is_grey), size=64, batch_size=96, freeze=0, backbone=backbone
            )  # type: ignore[arg-type]
            assert found["data.flip"] is not is_grey
