"""Settings: every way to lose one without a word is closed, each error names the key, and types judge values."""

import dataclasses
import pickle
import subprocess
import sys
import timeit
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from index.base.errors import ConfigError, RequestError
from index.base.object_cache import working_folder
from index.base.setting_types import hints_of, range_of
from index.base.settings import (
    known_keys,
    merge,
    parse_overrides,
    parse_yaml,
    settings,
    to_yaml,
    validate,
)
from index.base.variants import Variants


@settings("episode")
class Episode:
    n_way: Annotated[int, Field(ge=2)] = 5
    k_shot: int = 1

    def __post_init__(self) -> None:
        if self.k_shot > self.n_way:
            raise ConfigError(f"episode.k_shot={self.k_shot} is above episode.n_way={self.n_way}")


@settings("method")
class Pcn:
    kind: Literal["pcn"] = "pcn"
    temperature: float = 3.0


@settings("method")
class DeepKnn:
    kind: Literal["deep_knn"] = "deep_knn"
    k_same: int = 5


@settings("")
class Crop:
    size_px: int


@settings("")
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


@settings("x")
class Every:
    """One field for each kind of type."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    rate: Annotated[float, Field(gt=0)] = 0.1
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    step: Annotated[int, Field(multiple_of=8)] = 8
    scope: Literal["local", "global"] = "local"
    channels: Literal[1, 3] = 3
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    k_p: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    size: tuple[int, int] = (3, 4)
    limit: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    label: Annotated[str, Field(pattern="^[a-z]*$", max_length=4)] = ""
    folder: Path = Path("x")
    weights: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    is_on: bool = False
    episode: Episode = field(default_factory=Episode)
    crops: tuple[Crop, ...] = ()


def load(text: str, *overrides: str) -> Run:
    data = merge(parse_yaml(text, "run.yaml"), parse_overrides(overrides))
    return validate(Run, data, "run.yaml")


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [*x]", "line 1: an alias .* inside the value that it refers to"),
        ("a: 1\nb: &x {c: {d: *x}}", "line 2: an alias"),
        ("a: &a [1, 1, 1, 1]\n" + "".join(f"b{n}: &b{n} [{', '.join(['*a' if n == 0 else f'*b{n - 1}'] * 9)}]\n" for n in range(8)), "unfold to more than"),
        ("a: " + "[" * 5000, "nested too deeply|expected"),
        ("a: \0", "not YAML"),
    ],
)  # fmt: skip
def test_yaml_that_holds_itself_or_unfolds_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_yaml(text, "f.yaml")
    assert "\n" not in str(caught.value)


def test_yaml_may_say_a_value_once_and_use_it_twice() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x", "f.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_path_with_a_nul_character_is_refused() -> None:
    with pytest.raises(RequestError, match=r"'a\\x00b' is not a path"):
        working_folder("a\0b")


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
            'method.kind="pcm" must be one of pcn, deep_knn (run.yaml); did you mean pcn?',
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
        ("- 1", (), "run.yaml must contain a mapping of keys to values; it contains a list"),
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


def test_a_rule_between_fields_comes_through_unchanged() -> None:
    assert refusal("dataset: x", "episode.k_shot=31") == "episode.k_shot=31 is above episode.n_way=30"


NOT_FINITE = "must be a finite number"
RANGES = [
    ({"share": 1.0}, "x.share=1.0 must be at least 0 and below 1"),
    ({"share": -1}, "x.share=-1 must be at least 0 and below 1"),
    ({"rate": 0.0}, "x.rate=0.0 must be above 0"),
    ({"rate": float("inf")}, f"x.rate=inf {NOT_FINITE}"),
    ({"rate": True}, "x.rate=true must be a number"),
    ({"threads": 65}, "x.threads=65 must be at least 1 and at most 64"),
    ({"threads": True}, "x.threads=true must be a whole number"),
    ({"threads": 2.0}, "x.threads=2.0 must be a whole number"),
    ({"step": 9}, "x.step=9 must be a multiple of 8"),
    ({"scope": "gobal"}, 'x.scope="gobal" must be local or global{}; did you mean global?'),
    ({"scope": "world"}, 'x.scope="world" must be local or global'),
    ({"channels": 2}, "x.channels=2 must be 1 or 3"),
    ({"channels": True}, "x.channels=true must be 1 or 3"),
    ({"channels": 1.0}, "x.channels=1.0 must be 1 or 3"),
    ({"std": [1, 0]}, "x.std[1]=0 must be above 0"),
    ({"std": [0, "a"]}, "x.std[0]=0 must be above 0"),
    ({"std": [float("inf")]}, f"x.std[0]=inf {NOT_FINITE}"),
    ({"std": 1}, "x.std=1 must be a list, such as [1, 2]"),
    ({"k_p": []}, "x.k_p=[] must be of length 1 or more"),
    ({"size": [1]}, "x.size=[1] must be a longer list"),
    ({"size": [1, 2, 3]}, "x.size=[1, 2, 3] must be of length 2 or less"),
    ({"limit": 0}, "x.limit=0 must be at least 1 or all"),
    ({"limit": "al"}, 'x.limit="al" must be a whole number or all{}; did you mean all?'),
    ({"label": "A"}, 'x.label="A" must be of length 4 or less and text that matches ^[a-z]*$'),
    ({"label": "abcde"}, 'x.label="abcde" must be of length 4 or less and text that matches ^[a-z]*$'),
    ({"folder": 5}, "x.folder=5 must be a path (put it in quotes)"),
    ({"weights": {"a": 1, "b": 0}}, "x.weights.b=0 must be above 0"),
    ({"weights": 3}, "x.weights=3 must be a mapping of keys to values"),
    ({"is_on": 1}, "x.is_on=1 must be true or false"),
]


@pytest.mark.parametrize(("values", "message"), RANGES)
def test_constructor_and_file_say_the_same(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as built:
        Every(**values)
    assert str(built.value) == message.format("")
    with pytest.raises(ConfigError) as read:
        validate(Every, parse_yaml(to_yaml(values), "run.yaml"), "run.yaml", "x")
    assert str(read.value) == (message if "{}" in message else message + "{}").format(" (run.yaml)")


def test_nan_is_refused() -> None:
    with pytest.raises(ConfigError, match=rf"^x\.share=nan {NOT_FINITE}$"):
        Every(share=float("nan"))


def test_a_constructor_takes_instances_of_other_settings_classes_only() -> None:
    assert Every(episode=Episode(n_way=3), crops=(Crop(size_px=1),)).crops[0].size_px == 1
    with pytest.raises(ConfigError, match=r"^x\.episode=3 must be an instance of Episode$"):
        Every(episode=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^x\.crops\[1\]=3 must be an instance of Crop$"):
        Every(crops=(Crop(size_px=1), 3))  # type: ignore[arg-type]


def test_values_are_turned_into_their_types() -> None:
    every = Every(share=0, std=[1, 2], folder="a/b", limit="all")  # type: ignore[arg-type]
    assert (every.share, every.std, every.folder, every.limit) == (0.0, (1.0, 2.0), Path("a/b"), "all")
    assert type(every.share) is float
    assert {type(value) for value in every.std} == {float}


def test_a_settings_class_is_a_frozen_dataclass() -> None:
    every = Every(share=0.25)
    assert dataclasses.is_dataclass(Every)
    assert not hasattr(every, "__dict__")
    assert [f.name for f in dataclasses.fields(every)][:2] == ["share", "rate"]
    assert dataclasses.asdict(every)["episode"] == {"n_way": 5, "k_shot": 1}
    assert dataclasses.replace(every, rate=2).rate == 2.0
    with pytest.raises(ConfigError, match="must be above 0"):
        dataclasses.replace(every, rate=-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        every.share = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Episode(3)  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(every)) == every


def test_a_subclass_has_the_types_and_rules_of_its_base() -> None:
    @settings("more")
    class More(Episode):
        extra: Annotated[int, Field(ge=1)] = 1

    for values, message in (
        ({"n_way": 1}, r"^more\.n_way=1 must be at least 2$"),
        ({"extra": 0}, r"^more\.extra=0 must be at least 1$"),
        ({"k_shot": 9}, r"^episode\.k_shot=9 is above"),
    ):
        with pytest.raises(ConfigError, match=message):
            More(**values)


def test_building_one_takes_microseconds() -> None:
    Every()
    assert min(timeit.repeat(Every, number=200, repeat=5)) / 200 < 200e-6  # 20 µs alone on one core


def test_a_range_in_words() -> None:
    words = {f.name: range_of(hint) for f, hint in zip(dataclasses.fields(Every), hints(), strict=True)}
    assert words["share"] == "at least 0 and below 1"
    assert words["threads"] == "at least 1 and at most 64"
    assert words["k_p"] == "of length 1 or more"
    assert words["limit"] == "at least 1"
    assert words["is_on"] == ""


def hints() -> list[Any]:
    return list(hints_of(Every).values())


loaded: list[str] = []


def load_pcn() -> type:
    loaded.append("pcn")
    return Pcn


def load_deep_knn() -> type:
    loaded.append("deep_knn")
    return DeepKnn


def load_broken() -> type:
    loaded.append("broken")
    raise ConfigError("method.kind=broken, brought by a distribution, cannot be loaded")


def find() -> Mapping[str, Callable[[], type]]:
    return {"pcn": load_pcn, "deep_knn": load_deep_knn, "broken": load_broken}


@runtime_checkable
class MethodSettings(Protocol):
    kind: str


@settings("")
class Lazy:
    method: Annotated[MethodSettings, Variants(find)] = field(default_factory=Pcn)


@pytest.mark.parametrize(
    ("text", "method", "loads"),
    [
        ("method: {temperature: 2}", Pcn(temperature=2.0), []),
        ("method: {kind: deep_knn, k_same: 7}", DeepKnn(k_same=7), ["deep_knn"]),
        ("method: {kind: pcn}", Pcn(), ["pcn"]),
    ],
)
def test_the_named_variant_alone_is_loaded(text: str, method: object, loads: list[str]) -> None:
    loaded.clear()
    assert validate(Lazy, parse_yaml(text, "f"), "f") == Lazy(method=method)
    assert loaded == loads


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: pcm}", 'method.kind="pcm" must be one of pcn, deep_knn, broken (f); did you mean pcn?'),
        ("{kind: 3}", "method.kind=3 must be one of pcn, deep_knn, broken (f)"),
        ("{kind: broken}", "method.kind=broken, brought by a distribution, cannot be loaded"),
        ("{k_same: 3}", "method.k_same belongs to method.kind=deep_knn; this run has method.kind=pcn (f)"),
        (
            "{kind: deep_knn, k_sane: 3}",
            "unknown key method.k_sane in f; did you mean method.k_same?",
        ),
    ],
)
def test_refusals_of_lazy_variants(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Lazy, parse_yaml(f"method: {text}", "f"), "f")
    assert str(caught.value) == message


def test_a_variant_is_an_instance_of_the_fields_type() -> None:
    with pytest.raises(ConfigError, match=r"^method=.* must be an instance of MethodSettings$"):
        Lazy(method=Crop(size_px=1))  # type: ignore[arg-type]


def test_keys_of_all_variants_that_can_be_loaded_are_known() -> None:
    assert known_keys(Lazy) == {"method.kind", "method.temperature", "method.k_same"}


def test_importing_the_package_is_fast_and_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, time; start = time.process_time(); import fsl_dist; took = time.process_time() - start; "
        "print(took, *({'torch', 'pydantic'} & sys.modules.keys()))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    assert all(len(run.stdout.split()) == 1 for run in runs)
    assert min(float(run.stdout) for run in runs) < 0.05


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


@hypothesis.settings(max_examples=80, deadline=None)
@given(
    name=texts,
    rate=st.floats(allow_nan=False, allow_infinity=False),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    k_p=st.lists(st.integers()),
    method=st.builds(Pcn, temperature=st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(DeepKnn, k_same=st.integers()),
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
