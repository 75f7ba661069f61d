"""The strict gate: every way to lose a setting without a word is closed, and each error names the key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.base.errors import ConfigError
from index.base.settings import merge, parse_overrides, parse_yaml, to_yaml, validate


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    n_way: int = 5
    k_shot: int = 1

    def __post_init__(self) -> None:
        if self.n_way < 2:
            raise ConfigError(f"episode.n_way={self.n_way} must be at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pcn:
    kind: Literal["pcn"] = "pcn"
    temperature: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepKnn:
    kind: Literal["deep_knn"] = "deep_knn"
    k_same: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    size_px: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    dataset: Path
    name: str = "run"
    episode: Episode = Episode(n_way=30)
    method: Pcn | DeepKnn = field(default_factory=lambda: Pcn(temperature=2.0))
    learning_rate: float = 0.1
    limit: float | None = None
    use_bf16: bool = False
    k_p: tuple[int, ...] = (1, 3)
    crops: tuple[Crop, ...] = ()
    named: dict[str, Crop] = field(default_factory=dict)


def load(text: str, *overrides: str) -> Run:
    data = merge(parse_yaml(text, "run.yaml"), parse_overrides(overrides))
    return validate(Run, data, "run.yaml")


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_arrive_with_their_types() -> None:
    run = load(
        "dataset: data/x\nlearning_rate: 1e-3\nlimit: 2\nmethod: {kind: deep_knn, k_same: 010}",
        "k_p=[5, 7]",
        "use_bf16=true",
        "crops=[{size_px: 3}]",
        "named.a.size_px=4",
    )
    assert run == Run(
        dataset=Path("data/x"),
        learning_rate=0.001,
        limit=2.0,
        method=DeepKnn(k_same=10),
        k_p=(5, 7),
        use_bf16=True,
        crops=(Crop(size_px=3),),
        named={"a": Crop(size_px=4)},
    )
    assert isinstance(run.limit, float)


def test_what_is_left_out_keeps_the_fields_default() -> None:
    run = load("dataset: x", "episode.k_shot=7", "method={}")
    assert run.episode == Episode(n_way=30, k_shot=7)
    assert run.method == Pcn(temperature=2.0)


@pytest.mark.parametrize("text", ["1e-3", "1E5", "+.5e2", "-2e+1", "6.02e23"])
def test_exponents_are_floats(text: str) -> None:
    assert parse_yaml(f"x: {text}", "f") == {"x": float(text)}


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "1:30", ".nan", "0x1f"])
def test_yaml_surprises_stay_text(text: str) -> None:
    assert parse_yaml(f"x: {text}", "f") == {"x": text}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("episode: {n_wya: 3}", (), "unknown key episode.n_wya in run.yaml; did you mean episode.n_way?"),
        ("n_way: 3", (), "unknown key n_way in run.yaml; did you mean episode.n_way?"),
        ("method: {zzzzz: 3}", (), "unknown key method.zzzzz in run.yaml; method takes kind, temperature"),
        (
            "method: {kind: deep_knn, temperature: 3}",
            (),
            "method.temperature belongs to method.kind=pcn; this run has method.kind=deep_knn (run.yaml)",
        ),
        (
            "method: {kind: pcm}",
            (),
            'method.kind="pcm" is none of pcn, deep_knn (run.yaml); did you mean pcn?',
        ),
        ("episode: {n_way: true}", (), "episode.n_way=true must be a whole number (run.yaml)"),
        ("episode: {n_way: 5.0}", (), "episode.n_way=5.0 must be a whole number (run.yaml)"),
        ("episode: {n_way: '5'}", (), 'episode.n_way="5" must be a whole number (run.yaml)'),
        ("use_bf16: 1", (), "use_bf16=1 must be true or false (run.yaml)"),
        ("learning_rate: true", (), "learning_rate=true must be a number (run.yaml)"),
        ("name: 5", (), "name=5 must be text (put it in quotes) (run.yaml)"),
        ("k_p: [1, x]", (), 'k_p[1]="x" must be a whole number (run.yaml)'),
        ("k_p: 3", (), "k_p=3 must be a list, such as [1, 2] (run.yaml)"),
        ("episode: 3", (), "episode=3 must be a mapping of keys to values (run.yaml)"),
        ("crops: [{size: 3}]", (), "unknown key crops[0].size in run.yaml; did you mean crops[0].size_px?"),
        ("named: {a: {}}", (), "named.a.size_px is required and not set (run.yaml)"),
        ("name: a\nname: b", (), "run.yaml, line 2: key name is given twice; keep one"),
        ("episode:\n  n_way: 2\n  n_way: 3", (), "run.yaml, line 3: key n_way is given twice; keep one"),
        ("1: 2", (), "run.yaml, line 1: key 1 is a number; keys must be text (quote it)"),
        ("- 1", (), "run.yaml must hold a mapping of keys to values; it holds a list"),
        ("a: [1", (), "run.yaml, line 1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("", ("episode.n_way",), "'episode.n_way' is not of the form key=value, such as episode.n_way=5"),
        ("", ("a..b=1",), "'a..b=1' is not of the form key=value, such as episode.n_way=5"),
        ("", ("name=a", "name=b"), "name is set twice among the key=value arguments; keep one"),
        (
            "",
            ("episode=1", "episode.n_way=3"),
            "'episode.n_way=3' sets a key inside episode, which an earlier",
        ),
        ("", (), "dataset is required and not set (run.yaml)"),
    ],
)
def test_refusals(text: str, overrides: tuple[str, ...], message: str) -> None:
    assert message in refusal(text, *overrides)


def test_objects_are_never_built() -> None:
    assert "could not determine a constructor" in refusal("dataset: !!python/object/apply:os.getcwd []")


def test_the_dataclass_own_error_comes_through_unchanged() -> None:
    assert refusal("dataset: x", "episode.n_way=1") == "episode.n_way=1 must be at least 2"


def test_prefix_stands_before_keys() -> None:
    with pytest.raises(ConfigError, match=r"unknown key sweep\.n_wya .* did you mean sweep\.n_way\?"):
        validate(Episode, {"n_wya": 3}, "sweep.yaml", prefix="sweep")


def test_merge_joins_mappings_and_replaces_the_rest() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "e": None}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "1e-3",
        "010",
        "no",
        "true",
        "null",
        "",
        "~",
        "2024-01-01",
        "1_0",
        ".5",
        "=",
        "<<",
        "0x1",
        ".inf",
        "a: b",
        "- x",
    ]
)


@settings(max_examples=80, deadline=None)
@given(
    name=texts,
    rate=st.floats(allow_nan=False),
    limit=st.none() | st.floats(allow_nan=False),
    k_p=st.lists(st.integers()),
    method=st.builds(Pcn, temperature=st.floats(allow_nan=False)) | st.builds(DeepKnn, k_same=st.integers()),
    named=st.dictionaries(texts, st.builds(Crop, size_px=st.integers()), max_size=3),
)
def test_what_is_written_reads_back_equal(name, rate, limit, k_p, method, named) -> None:
    run = Run(
        dataset=Path("d"),
        name=name,
        learning_rate=rate,
        limit=limit,
        k_p=tuple(k_p),
        method=method,
        named=named,
    )
    assert validate(Run, parse_yaml(to_yaml(run), "y"), "y") == run
