"""`import fsl_dist`: from a folder of images to a trained run that is evaluated, used on images, explained and indexed."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

import fsl_dist
import fsl_dist.export as fsl_dist_export
from cluster.cli import fsl_dist as command_line
from fsl_dist.data.catalogue import Catalogue
from index import open_index

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

SETTINGS = {
    "training.epochs": 10,
    "training.batch_size": 32,
    "training.images": 600,
    # A run is cut off and resumed here by `images`, which another schedule would follow.
    "training.schedule": "milestones",
    "training.warmup": 0,
    "backbone.name": "conv4",
    "backbone.width": 8,
    "backbone.pretrained": False,
    "data": {"channels": 1, "image_size": 16, "resize_size": 16, "decoder": "torchvision"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders 0 … 5 of 24 digits each, one file that is no image, and a folder `novel` of two more classes aside."""
    scans, source = load_digits(), tmp_path_factory.mktemp("images")
    for label in range(8):
        folder = source / ("mine" if label < 6 else "novel") / str(label)
        folder.mkdir(parents=True)
        for member in np.flatnonzero(scans.target == label)[:24]:
            Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8)).save(
                folder / f"{member}.png"
            )
    (source / "mine" / "0" / "broken.jpg").write_bytes(b"no image")
    return source


@pytest.fixture(scope="module")
def data(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return fsl_dist.pack(
        images / "mine", tmp_path_factory.mktemp("data") / "mine", processes=1, progress=False
    )


@pytest.fixture(scope="module")
def run(data: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> fsl_dist.Run:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return fsl_dist.train("own-images", data=data, dir=folder, settings=SETTINGS)


@pytest.fixture(scope="module")
def queries(images: Path, data: Catalogue) -> list[Path]:
    """Files of the first five test images."""
    return [images / "mine" / f"{key}.png" for key in data.keys(data.select("test").ids[:5])]


def test_a_packed_folder_says_what_it_is(images: Path, data: Catalogue) -> None:
    assert len(data) == data.num_samples == 144
    assert (
        repr(data)
        == f"Catalogue('{data.folder}', version 1, 144 images of 6 classes: train 102, val 12, test 30)"
    )
    assert data.report is not None
    assert [bad.path for bad in data.report.bad_samples] == ["0/broken.jpg"]
    assert data._repr_html_().count("<tr>") == 4
    assert len(fsl_dist.open_data(data.folder)) == 144
    assert fsl_dist.open_data(data.folder).report is None


def test_options_that_name_nothing_are_refused_in_one_line(images: Path, tmp_path: Path) -> None:
    for options, words in [
        (
            {"split": "alphabetic"},
            "split='alphabetic' must be one of stratified, classes, base-novel, column",
        ),
        ({"label_column": "species"}, "set the table with table=FILE"),
    ]:
        with pytest.raises(fsl_dist.RequestError) as refused:
            fsl_dist.pack(images / "mine", tmp_path / "out", **options)
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


def test_data_sets_are_appended_to_divided_again_and_adopted(images: Path, tmp_path: Path) -> None:
    packed = fsl_dist.pack(images / "mine", tmp_path / "data", processes=1)
    more = fsl_dist.pack(images / "novel", tmp_path / "data", append=True, processes=1)
    assert (more.version, len(more), more.num_classes) == (2, 192, 8)
    divided = fsl_dist.resplit(tmp_path / "data", split="base-novel", num_base=5)
    assert (divided.version, len(divided.select("novel"))) == (3, 3 * 24)
    assert len(fsl_dist.open_data(tmp_path / "data", version=1)) == len(packed)
    adopted = fsl_dist.adopt(tmp_path / "data" / "shards", tmp_path / "adopted", processes=1)
    assert adopted.report is not None
    assert (len(adopted), adopted.report.dataset) == (144, str(tmp_path / "adopted"))


def test_training_returns_a_run_that_says_what_it_is(run: fsl_dist.Run, data: Catalogue) -> None:
    assert run.summary is not None
    assert run.summary.images_seen >= 600
    assert run.config.data.version == 1
    assert run.data.fingerprint == data.fingerprint
    assert re.fullmatch(
        r"Run\('.*/mine', method=deep_knn, \d epochs, best knn/mcr@5 [\d.]+ from [\d.]+ at the start\)",
        repr(run),
    )
    assert run.best == run.summary.best_value
    steps = [line for line in run.metrics if "train/loss" in line]
    assert steps[-1]["step"] == run.summary.steps
    assert "knn/mcr@5" in run._repr_html_()
    again = fsl_dist.open_run(run.dir)
    assert (repr(again), again.summary) == (repr(run), None)


def test_a_configuration_is_a_name_a_path_settings_or_a_configuration(
    run: fsl_dist.Run, data: Catalogue, tmp_path: Path
) -> None:
    short = {**SETTINGS, "training.epochs": 0}
    by_path = fsl_dist.train(run.dir / "config.yaml", dir=tmp_path / "path", settings={"training.epochs": 0})
    by_value = fsl_dist.train(run.config, dir=tmp_path / "value", settings=["training.epochs=0"])
    by_dict = fsl_dist.train(
        {"method": {"kind": "cross_entropy"}, "training.lr": 1e-5, **short},
        data=str(data.folder),
        dir=tmp_path / "dict",
    )
    assert by_path.config.method == by_value.config.method == run.config.method
    assert (by_dict.config.method.kind, by_dict.config.training.lr) == ("cross_entropy", 1e-5)
    for config, settings, words in [
        ("own-image", {}, "did you mean"),
        (None, {"training.epoch": 1}, "unknown key training.epoch"),
        (None, {"training.epochs": "many"}, 'training.epochs="many" must be a whole number'),
        (None, {"training.epochs": object()}, "training.epochs contains a object, which no setting accepts"),
    ]:
        with pytest.raises(fsl_dist.ConfigError) as refused:
            fsl_dist.train(config, dir=tmp_path / "none", settings=settings)
        assert words in str(refused.value)


def test_a_run_is_resumed_where_it_was(run: fsl_dist.Run, data: Catalogue, tmp_path: Path) -> None:
    first = fsl_dist.train(
        "own-images", data=data, dir=tmp_path / "run", settings={**SETTINGS, "training.images": 200}
    )
    with pytest.raises(fsl_dist.RequestError, match="resume=True"):
        fsl_dist.train("own-images", data=data, dir=tmp_path / "run", settings=SETTINGS)
    longer = fsl_dist.train(dir=tmp_path / "run", settings={"training.images": 600}, resume=True)
    assert first.summary is not None
    assert longer.summary is not None
    assert longer.summary.steps == run.summary.steps > first.summary.steps  # type: ignore[union-attr]
    assert [line["train/loss"] for line in longer.metrics if "train/loss" in line] == [
        line["train/loss"] for line in run.metrics if "train/loss" in line
    ]


def test_scores_are_a_mapping(run: fsl_dist.Run) -> None:
    scores = run.evaluate()
    assert 0.1 < scores["knn/acc@5"] <= 1
    assert dict(scores) == scores.to_json()["metrics"]
    assert scores._repr_html_().count("<tr>") == 1 + len(scores)
    assert "knn/acc@5" in repr(scores)
    assert set(run.evaluate("knn", settings={"evaluation.k_p": [3]})) == {
        "knn/acc@3",
        "knn/mcr@3",
        "knn/rs@3",
    }
    with pytest.raises(fsl_dist.ConfigError, match=r"training\.lr was fixed"):
        run.evaluate(settings={"training.lr": 1})


def test_files_pil_images_arrays_and_ids_embed_alike(
    run: fsl_dist.Run, data: Catalogue, queries: list[Path], tmp_path: Path
) -> None:
    wanted = run.embed(queries)
    assert (wanted.dtype, wanted.shape) == (np.float32, (5, 8))
    opened = [Image.open(path) for path in queries]
    arrays = [np.asarray(image) for image in opened]
    for images in (
        [str(path) for path in queries],
        opened,
        arrays,
        [array[:, :, None] for array in arrays],
        [np.stack([array] * 3, axis=2) for array in arrays],
        np.stack(arrays)[..., None],
        data.select("test").ids[:5],
        data.select("test").ids[:5].tolist(),
    ):
        np.testing.assert_allclose(run.embed(images), wanted, atol=1e-6)
    everything = run.embed(data)
    np.testing.assert_allclose(everything[data.select("test").ids[:5]], wanted, atol=1e-6)
    np.testing.assert_array_equal(run.embed(data, out=tmp_path / "all.npy"), everything)
    assert run.embed([]).shape == (0, 8)


def test_odd_images_embed_as_their_files_do(run: fsl_dist.Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = colours.convert(mode)
        image.save(tmp_path / f"{mode}.png", exif=exif)
        np.testing.assert_allclose(
            run.embed([Image.open(tmp_path / f"{mode}.png")]),
            run.embed([tmp_path / f"{mode}.png"]),
            atol=1e-6,
        )
    depths = Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16))
    depths.save(tmp_path / "depths.png")
    np.testing.assert_allclose(run.embed([depths]), run.embed([tmp_path / "depths.png"]), atol=1e-6)
    cmyk = colours.convert("CMYK")
    np.testing.assert_allclose(run.embed([cmyk]), run.embed([cmyk.convert("RGB")]), atol=1e-6)


def test_what_is_no_image_is_refused_in_one_line(
    run: fsl_dist.Run, images: Path, queries: list[Path]
) -> None:
    broken = images / "mine" / "0" / "broken.jpg"
    for given, error, words in [
        ([queries[0], broken], fsl_dist.DataError, "images[1]: "),
        ([np.zeros((4, 4), np.float32)], fsl_dist.RequestError, "images[0] is an array of float32 [4, 4]"),
        (
            [np.zeros((4, 4, 2), np.uint8)],
            fsl_dist.RequestError,
            "must be uint8 [H, W], [H, W, 1] or [H, W, 3]",
        ),
        ([None], fsl_dist.RequestError, "images[0] is a NoneType"),
        (str(queries[0]), fsl_dist.RequestError, "put a single one in brackets"),
        (np.zeros((4, 4, 3), np.uint8), fsl_dist.RequestError, "put a single one in brackets"),
        ([99999], fsl_dist.RequestError, "sample id 99999 is outside"),
    ]:
        with pytest.raises(error) as refused:
            run.embed(given)
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


def test_classes_are_predicted_of_files_and_of_images_in_memory(
    run: fsl_dist.Run, images: Path, queries: list[Path]
) -> None:
    plain = run.predict(queries)
    assert [one.image for one in plain] == [str(path) for path in queries]
    assert plain[0].classes[0].score >= plain[0].classes[1].score
    arrays = run.predict([np.asarray(Image.open(path)) for path in queries])
    assert [one.image for one in arrays] == [f"images[{position}]" for position in range(5)]
    assert [one.classes for one in arrays] == [one.classes for one in plain]
    novel = sorted((images / "novel" / "7").iterdir())
    found = run.predict(novel[12:], support=images / "novel", k=1)
    given = {name: sorted((images / "novel" / name).iterdir()) for name in ("6", "7")}
    assert run.predict(novel[12:], support=given, k=1) == found
    assert any(one.classes[0].is_novel for one in found)
    failing = run.predict([images / "mine" / "0" / "broken.jpg", queries[0]])
    assert (len(failing), len(failing.failed)) == (1, 1)
    assert failing._repr_html_().count("<tr>") == 1 + 5 + 1
    with pytest.raises(fsl_dist.RequestError, match="class 'a' contains no image"):
        run.predict(queries, support={"a": []})


def test_explanations_show_pictures_and_write_only_where_asked(
    run: fsl_dist.Run, queries: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run.explain([queries[0], Image.open(queries[1])], k=3)
    assert list(tmp_path.iterdir()) == []
    assert (len(shown), len(shown[0].neighbours), shown[1].image) == (2, 3, "images[1]")
    assert shown[0].evidence.results[0].query_map is not None
    assert shown._repr_html_().startswith("<iframe")
    assert shown._repr_html_().count("data:image/png") >= 2 * (1 + 3)
    assert Image.open(io.BytesIO(shown[0]._repr_png_())).width > 100
    written = run.explain(queries[:1], out="why", k=3)
    assert {path.name for path in Path("why").iterdir()} == {"index.html", f"{queries[0].stem}.png"}
    assert [near.key for near in written[0].neighbours] == [near.key for near in shown[0].neighbours]


def test_an_index_is_built_and_searched_by_class(run: fsl_dist.Run, data: Catalogue, tmp_path: Path) -> None:
    index = run.build_index(tmp_path / "index", metric="cosine")
    train = data.select("train")
    assert index.num_vectors == len(train)
    assert repr(index).startswith(f"LocalIndex('{tmp_path / 'index'}")
    vectors = run.embed(train.ids[:20])
    found = index.search(vectors, k=3, same_class=train.sample_labels[:20], query_ids=train.ids[:20].tolist())
    assert (data.labels[found.ids] == train.sample_labels[:20, None]).all()
    assert not (found.ids == train.ids[:20, None]).any()
    assert repr(found) == "SearchResult(3 neighbours of 20 queries: ids, distances)"
    assert (data.labels[index.search(vectors, other_class="2").ids] != 2).all()
    named = [data.class_names[label] for label in train.sample_labels[:20]]
    np.testing.assert_array_equal(
        index.search(vectors, k=3, same_class=named, query_ids=train.ids[:20]).ids, found.ids
    )
    with pytest.raises(fsl_dist.RequestError, match="did you mean '2'"):
        index.search(vectors, same_class="22")
    assert run.evaluate("knn", index=tmp_path / "index")["knn/acc@5"] > 0.1
    assert open_index(str(tmp_path / "index")).num_vectors == index.num_vectors
    with pytest.raises(fsl_dist.ConfigError, match="nlists"):
        run.build_index(tmp_path / "other", nlists=3)


def test_mistakes_are_told_by_arguments_in_one_line(
    run: fsl_dist.Run, data: Catalogue, queries: list[Path], tmp_path: Path
) -> None:
    def refusal(call: object) -> str:
        with pytest.raises(fsl_dist.FslDistError) as refused:
            call()  # type: ignore[operator]
        return str(refused.value)

    taken = data.folder
    assert "is a data set; name another folder for the index" in refusal(lambda: run.build_index(taken))
    assert "is a data set; name another folder for the run" in refusal(
        lambda: fsl_dist.train("own-images", data=data, dir=taken, settings=SETTINGS)
    )
    assert "has no run to resume" in refusal(lambda: fsl_dist.train(dir=tmp_path / "none", resume=True))
    assert refusal(lambda: run.build_index(tmp_path / "index", workers=0)) == "workers=0 must be at least 1"
    assert "out=x.npy is for a data set" in refusal(lambda: run.embed(queries, out="x.npy"))
    assert "k=2.5 must be a whole number" in refusal(lambda: run.predict(queries, k=2.5))  # type: ignore[arg-type]
    assert "seed=-1 must be at least 0" in refusal(lambda: fsl_dist.pack(taken, tmp_path / "d", seed=-1))
    assert (
        refusal(lambda: run.evaluate(settings={"k_p": [1]}))
        == "unknown key k_p; did you mean evaluation.k_p?"
    )
    wrong = refusal(
        lambda: fsl_dist.train("own-images", data=data, dir=tmp_path / "r", settings="training.epochs=two")
    )
    assert wrong == 'training.epochs="two" must be a whole number (own-images and the settings given)'
    assert not any(tmp_path.iterdir())


def test_another_learning_rate_is_said_when_a_run_is_resumed(
    run: fsl_dist.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run.dir, tmp_path / "run")
    with caplog.at_level("WARNING"):
        fsl_dist.train(dir=tmp_path / "run", resume=True, settings={"training.lr": 0.005})
    assert "training.lr=0.005 replaces the run's 0.0003 from here on" in caplog.text


@pytest.mark.slow
def test_type_checkers_see_the_types_in_the_readme_s_examples(tmp_path: Path) -> None:
    examples = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    example = "\n".join(examples)
    assert "fsl_dist.fit" in example
    assert "fsl_dist.pack" in example
    shown = {
        "fit": "tune.fit.fitting.Fit",
        "fit.run": "fsl_dist.run.Run",
        "fit.chosen": "tune.fit.records.CandidateRecord",
        "data": "fsl_dist.data.catalogue.Catalogue",
        "run": "fsl_dist.run.Run",
        'run.evaluate()["knn/acc@5"]': "float | fsl_dist.metrics.class_scores.Repeated",
        'run.predict(["a.jpg"])[0].classes[0].name': "str",
        'run.explain(["a.jpg"])[0].neighbours[0].distance': "float",
        'run.build_index("i").search': "-> index.results.SearchResult",
        "fsl_dist.losses.deep_knn_loss": "embeddings: torch._tensor.Tensor",
        "fsl_dist.samplers.draw_episode": "-> fsl_dist.samplers.episode.Episode",
        "fsl_dist.__version__": "str",
    }
    wrong = ['fsl_dist.pack("only_a_source")', "fsl_dist.nonsense", "fsl_dist.losses.nonsense"]
    script = "\n".join([example, *(f"reveal_type({name})" for name in shown), *wrong, ""])
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    # As of an installed package, only what the script itself does is reported.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", ROOT / ".mypy_cache", "script.py"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in checked.stdout.splitlines() if line.startswith("script.py")]
    revealed = [line for line in lines if "Revealed type" in line]
    assert len(revealed) == len(shown), checked.stdout + checked.stderr
    for line, words in zip(revealed, shown.values(), strict=True):
        assert words in line
        assert '"Any"' not in line
    assert len([line for line in lines if ": error: " in line]) == len(wrong), checked.stdout


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt2", "model.onnx"])
def test_an_exported_embedder_embeds_as_the_run(
    run: fsl_dist.Run, data: Catalogue, tmp_path: Path, name: str
) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="pip install 'fsl-dist[export]'")
    out = run.export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    ids = data.select("test").ids[:3]
    images = run.trained.embedder.source.fetch(ids, None)
    if out.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out))
        (found,) = session.run(None, {"images": images.contiguous().numpy()})
        metadata = session.get_modelmeta().custom_metadata_map
    elif out.suffix == ".pt2":
        files = {"fsl_dist.json": ""}
        found = torch.export.load(out, extra_files=files).module()(images).detach().numpy()
        metadata = json.loads(files["fsl_dist.json"])
    else:
        with safe_open(str(out), framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        assert not any(key.startswith("classifier") for key in tensors)
        network = fsl_dist.models.build_network(
            run.config.backbone, sample_shape=(1, 16, 16), normalise=json.loads(metadata["normalise"])
        )
        network.load_state_dict(tensors)
        found = network.eval()(images).detach().numpy()
    np.testing.assert_allclose(found, run.embed(ids), atol=1e-4)
    facts = {key: json.loads(value) for key, value in metadata.items()}
    assert (facts["image_size"], facts["resize"], facts["resize_size"]) == (16, run.config.data.resize, 16)
    assert (facts["mean"], facts["std"]) == (list(run.config.data.mean[:1]), list(run.config.data.std[:1]))
    assert (facts["channel_order"], facts["embedding_dim"]) == ("L", 8)


def test_an_export_that_cannot_be_is_refused(
    run: fsl_dist.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(fsl_dist.RequestError, match=r"must end in \.onnx or \.safetensors or \.pt2"):
        run.export(tmp_path / "model.h5")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(fsl_dist.RequestError, match=r"pip install 'fsl-dist\[export\]'"):
        run.export(tmp_path / "model.onnx")
    # A file that gives other numbers than the run is not kept.
    wrong = (fsl_dist_export._write_pt2, lambda path, images: np.zeros((len(images), 8), np.float32))
    monkeypatch.setitem(fsl_dist_export._WRITERS, ".pt2", wrong)
    with pytest.raises(fsl_dist.TrainingError, match="embeddings differ from the run"):
        run.export(tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_run_at_an_object_store_is_opened_by_its_address(
    data: Catalogue, s3: str, queries: list[Path], elsewhere
) -> None:
    trained = fsl_dist.train(
        "own-images", data=data, dir=f"{s3}/run", settings={**SETTINGS, "training.images": 100}
    )
    assert f"{s3}/run" in repr(trained)
    wanted = trained.embed(queries)
    elsewhere("another machine")
    run = fsl_dist.open_run(f"{s3}/run")
    assert f"{s3}/run" in repr(run)
    np.testing.assert_array_equal(run.embed(queries), wanted)
    assert run.predict(queries[:1])[0].classes == trained.predict(queries[:1])[0].classes


def test_the_command_line_prints_what_the_functions_return(run: fsl_dist.Run, queries: list[Path]) -> None:
    asked = ["predict", str(run.dir), str(queries[0]), "--json"]
    assert json.loads(CliRunner().invoke(command_line, asked).stdout) == run.predict(queries[:1]).to_json()
    asked = ["evaluate", str(run.dir), "--json"]
    assert json.loads(CliRunner().invoke(command_line, asked).stdout) == run.evaluate().to_json()


def test_a_run_on_ray_starts_it_alone(data: Catalogue, tmp_path: Path) -> None:
    import ray

    settings = {**SETTINGS, "training.images": 100, "workers.num": 2}
    run = fsl_dist.train("own-images", data=data, dir=tmp_path / "run", settings=settings)
    assert run.summary is not None
    assert run.summary.images_seen >= 100
    assert not ray.is_initialized()
