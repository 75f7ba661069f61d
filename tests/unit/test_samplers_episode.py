"""Episodes hold exactly the promised classes and counts, and depend on nothing but (seed, epoch, number)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.selection import Selection
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.samplers.episode import Episode, EpisodeConfig, draw_episode, fit_selection


def selection_of(counts: list[int], first_label: int = 3) -> Selection:
    """Classes first_label, first_label + 2 … with these many images; ids start at 100."""
    labels = np.repeat(first_label + 2 * np.arange(len(counts)), counts)
    return Selection.from_labels(100 + np.arange(len(labels)), labels)


def names_of(selection: Selection) -> list[str]:
    return [f"n{label:04d}" for label in range(int(selection.labels.max()) + 1)]


def label_of(selection: Selection) -> dict[int, int]:
    return dict(zip(selection.ids.tolist(), selection.sample_labels.tolist(), strict=True))


def same_episode(a: Episode, b: Episode) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("classes", "support", "query"))


@settings(max_examples=60)
@given(
    extra=st.lists(st.integers(0, 12), min_size=2, max_size=12),
    n_way=st.integers(2, 12),
    k_shot=st.integers(1, 5),
    n_query=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    number=st.integers(0, 1000),
)
def test_episode_holds_what_it_promises(
    extra: list[int], n_way: int, k_shot: int, n_query: int, seed: int, number: int
) -> None:
    selection = selection_of([k_shot + n_query + more for more in extra])
    config = EpisodeConfig(n_way=min(n_way, len(extra)), k_shot=k_shot, n_query=n_query)
    episode = draw_episode(selection, config, seed=seed, epoch=1, number=number)

    assert episode.classes.shape == (config.n_way,)
    assert episode.support.shape == (config.n_way, k_shot)
    assert episode.query.shape == (config.n_way, n_query)
    assert {episode.classes.dtype, episode.support.dtype, episode.query.dtype} == {np.dtype(np.int64)}
    assert len(set(episode.classes.tolist())) == config.n_way
    drawn = np.concatenate([episode.support, episode.query], axis=1)
    assert len(np.unique(drawn)) == drawn.size  # no image twice, support and query disjoint
    labels = label_of(selection)
    for label, images in zip(episode.classes.tolist(), drawn.tolist(), strict=True):
        assert {labels[image] for image in images} == {label}
    assert same_episode(episode, draw_episode(selection, config, seed=seed, epoch=1, number=number))


def test_seed_epoch_and_number_each_change_the_episode() -> None:
    selection = selection_of([30] * 20)
    config = EpisodeConfig(n_way=5, k_shot=3, n_query=2)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [draw_episode(selection, config, seed=s, epoch=e, number=n) for s, e, n in keys]
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert not same_episode(one, other)


def test_every_class_and_image_is_drawn_alike() -> None:
    selection = selection_of([8] * 6)
    config = EpisodeConfig(n_way=2, k_shot=2, n_query=2)
    uses = np.zeros(len(selection))
    for number in range(900):
        episode = draw_episode(selection, config, seed=0, epoch=0, number=number)
        uses[np.concatenate([episode.support, episode.query], axis=None) - 100] += 1
    # 900 · 8 / 48 = 150 uses an image expected, standard deviation about 11: five of them
    assert abs(uses - 150).max() < 55


def test_small_class_is_refused_by_name() -> None:
    selection = selection_of([40, 12, 30], first_label=1)
    config = EpisodeConfig(n_way=2, k_shot=5, n_query=15)
    names = ["a", "b", "c", "n0153", "d", "e"]
    with pytest.raises(RequestError) as error:
        fit_selection(selection, config, names)
    assert str(error.value) == (
        "episode.k_shot=5 with n_query=15 needs 20 images per class; class 'n0153' has 12 "
        "(episode.small_classes=replace allows repeats)"
    )


def test_small_classes_are_skipped() -> None:
    selection = selection_of([40, 12, 30, 20])
    config = EpisodeConfig(n_way=3, k_shot=5, n_query=15, small_classes="skip")
    fitted = fit_selection(selection, config, names_of(selection))
    np.testing.assert_array_equal(fitted.labels, [3, 7, 9])
    np.testing.assert_array_equal(fitted.counts, [40, 30, 20])


def test_fitting_classes_are_left_as_they_are() -> None:
    selection = selection_of([20, 20])
    assert fit_selection(selection, EpisodeConfig(n_way=2), names_of(selection)) is selection


@pytest.mark.parametrize(
    ("counts", "small_classes", "text"),
    [
        (
            [20, 20],
            "error",
            "episode.n_way=3 needs as many classes in every episode; the training images have 2: set episode.n_way to at most 2 or add classes",
        ),
        (
            [20, 20, 4],
            "skip",
            "episode.n_way=3 needs as many classes in every episode; the training images have 2 (1 smaller ones left out by "
            "episode.small_classes=skip): set episode.n_way to at most 2 or add classes",
        ),
    ],
)
def test_too_few_classes_are_refused(counts: list[int], small_classes: str, text: str) -> None:
    selection = selection_of(counts)
    config = EpisodeConfig(n_way=3, small_classes=small_classes)
    with pytest.raises(RequestError) as error:
        fit_selection(selection, config, names_of(selection))
    assert str(error.value) == text


@pytest.mark.parametrize(("k_shot", "n_query"), [(5, 3), (6, 1), (1, 6)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_replace_repeats_within_each_side_only(count: int, k_shot: int, n_query: int) -> None:
    selection = selection_of([count, 20])
    config = EpisodeConfig(n_way=2, k_shot=k_shot, n_query=n_query, small_classes="replace")
    fitted = fit_selection(selection, config, names_of(selection))
    for number in range(20):
        episode = draw_episode(fitted, config, seed=0, epoch=0, number=number)
        row = episode.classes.tolist().index(3)
        support, query = set(episode.support[row].tolist()), set(episode.query[row].tolist())
        members = set(selection.of_class(0).tolist())
        assert support | query == members  # nothing is wasted
        assert not support & query or count == 1
        _, repeats = np.unique(episode.support[row], return_counts=True)
        assert np.ptp(repeats) <= 1
        # The large class next to it is drawn without repeats.
        assert len({*episode.support[1 - row].tolist(), *episode.query[1 - row].tolist()}) == k_shot + n_query


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("n_way", 1, "episode.n_way=1 must be at least 2"),
        ("k_shot", 0, "episode.k_shot=0 must be at least 1"),
        ("n_query", 0, "episode.n_query=0 must be at least 1"),
        ("per_step", -1, "episode.per_step=-1 must be at least 0"),
        ("per_epoch", 0, "episode.per_epoch=0 must be at least 1"),
        ("scope", "world", 'episode.scope="world" must be local or global'),
        ("small_classes", "drop", 'episode.small_classes="drop" must be error, replace or skip'),
    ],
)
def test_config_names_field_value_and_rule(field: str, value: int | str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        EpisodeConfig(**{field: value})
    assert str(error.value) == text
