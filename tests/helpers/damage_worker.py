"""A process that damages files of a folder and uses them, one case for each line on stdin; a crash of it is seen from outside.

python damage_worker.py make BASE           make sound folders: data, run, indexes, a sweep, users' files
python damage_worker.py work BASE SCRATCH   for each line "KIND SEED" print one line of JSON: how the case ended
"""

import hashlib
import json
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
from damage import Damage, damage
from PIL import Image

WORKER = Path(__file__)
KINDS = ("data", "run", "flat", "ivf", "hnsw", "pq", "sweep", "given")
_NOT_DAMAGED = ("owner", "tensorboard", "staging", "report.md", "pictures")
# A picture drawn of every sweep would take most of the time.
_REPORT_EVERY = 10


def environment() -> dict[str, str]:
    """What a process of this file needs."""
    paths = [str(WORKER.parents[2]), str(WORKER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def make(base: Path) -> None:
    """Make the sound folders."""
    import fsl_dist
    from index import IndexConfig, IndexWriter
    from index.writing.build import build

    draw = np.random.default_rng(0)
    for number in range(4):
        folder = base / "pictures" / f"class-{number}"
        folder.mkdir(parents=True)
        middle = draw.integers(0, 255, (16, 16, 3))
        for image in range(12):
            pixels = np.clip(middle + draw.integers(-90, 90, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{image:02d}.png")
    data = base / "data"
    fsl_dist.pack(base / "pictures", data, processes=1, progress=False)
    fsl_dist.resplit(data, split="stratified", seed=3)
    settings = {
        "backbone.name": "conv4",
        "data.image_size": 16,
        "data.resize_size": 16,
        "data.decoder": "torchvision",
        "data.threads": 1,
        "training.epochs": 2,
        "training.images": 400,
        "training.checkpoint_steps": 20,
        "episode.n_way": 3,
        "episode.k_shot": 1,
        "episode.n_query": 2,
        "method.kind": "pcn",
    }
    run = fsl_dist.train(data=data, dir=base / "run", settings=settings, progress=False)
    run.evaluate("knn")
    vectors = draw.standard_normal((600, 8), dtype=np.float32)
    labels = np.arange(600) % 5
    for name, config in {
        "flat": IndexConfig(shards=2),
        "ivf": IndexConfig(kind="ivf_flat", nlist=8),
        "hnsw": IndexConfig(kind="hnsw", hnsw_m=4, metric="cosine"),
        "pq": IndexConfig(kind="factory", factory="OPQ4,IVF4,PQ4x4"),
    }.items():
        build(base / name, vectors[:400] + 1, labels[:400], config=config)
        build(base / name, vectors[:560], labels[:560], ids=np.arange(560)[::-1] * 3, config=config)
        writer = IndexWriter(base / name)
        writer.remove(np.array([0, 9]))
        writer.add(vectors[560:570], labels[560:570])
        writer.update(np.array([30, 33]), vectors[570:572])
    _make_sweep(base / "sweep", data, settings)
    given = base / "given"
    given.mkdir()
    np.save(given / "vectors.npy", vectors)
    np.save(given / "labels.npy", labels)
    np.save(given / "columns.npy", np.asfortranarray(vectors))
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    (given / "settings.txt").write_text(text)
    (given / "settings.yaml").write_text(
        f"method: &m {{kind: pcn}}\nepisode: {{n_way: 3, k_shot: 1, n_query: 2}}\ndata: {{dataset: {data}}}\n"
        "backbone: {name: conv4}\ntraining:\n  epochs: 2\n  lr: 1e-3\n"
    )


def _make_sweep(folder: Path, data: Path, settings: dict) -> None:
    """A sweep's files as its trials would have written them, written by the functions that they use."""
    from fsl_dist.config import load_config
    from index.base.checksums import encode_line, encode_yaml
    from tune.records import Cell, Result, Session, SweepFolder, write_evaluation
    from tune.space import Knob
    from tune.sweep_file import SWEEP_FILE, render_sweep
    from tune.sweeps.config import SweepConfig

    base = load_config(None, [*(f"{k}={json.dumps(v)}" for k, v in settings.items()), f"data.dataset={data}"])
    space = {"training.lr": Knob(loguniform=(1e-4, 1e-2)), "training.momentum": Knob(uniform=(0.0, 0.9))}
    config = SweepConfig(dir=str(folder), base=base, space=space, trials=5)
    folder.mkdir()
    (folder / SWEEP_FILE).write_bytes(encode_yaml(render_sweep(config)))
    records, lines = SweepFolder(folder), []
    for number in range(6):
        trial = records.start(number, number - 1, config.point(number - 1) if number else {})
        value = 0.3 + 0.1 * number
        records.finish(trial, Result(state="finished", value=value, epochs=2, train_s=3.0, evaluate_s=1.0))
        scores = {"mca/novel": {"mean": value, "std": 0.01, "n": 10}, "mca/base": value}
        write_evaluation(trial.folder, "test", [Cell({"novel_clusters": 1}, scores)])
        lines += [{"trial": number, "epoch": epoch, "value": value, "stops": False} for epoch in (1, 2)]
    (folder / "reports.jsonl").write_text("".join(map(encode_line, lines)))
    for number in (1, 2):
        records.write_session(
            number, Session(started="now", wall_s=40.0 + number, busy_core_s=48.0, cores=2.0)
        )


def uses_of(kind: str, folder: Path, base: Path, seed: int) -> dict[str, Callable[[], object]]:
    """What is done with a folder, by name; each returns an answer as JSON has it."""
    if kind == "data":
        return {
            "open": lambda: _open_data(folder),
            "read": lambda: _read_samples(folder),
            "train": lambda: _check_training(folder, base),
        }
    if kind == "run":
        return {
            "open": lambda: _open_run(folder),
            "predict": lambda: _predict(folder, base),
            "evaluate": lambda: _evaluate(folder),
        }
    if kind == "sweep":
        return {"table": lambda: _read_sweep_table(folder), "report": lambda: _report(folder, seed)}
    if kind == "given":
        return {name.name: lambda name=name: _read_given(name) for name in sorted(folder.iterdir())}
    return {"search": lambda: _search(folder), "write": lambda: _open_writer(folder)}


def _digest(*arrays: object) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(
            np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else repr(array).encode()
        )
    return digest.hexdigest()[:16]


def _open_data(folder: Path) -> object:
    import fsl_dist

    data = fsl_dist.open_data(folder)
    facts = data.class_names, data.group_names, data.shards, data.options, data.bad_samples
    columns = data.columns()
    return [len(data), data.fingerprint, _digest(*facts), _digest(*columns.values())]


def _read_samples(folder: Path) -> object:
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.store import ShardStore

    data = Catalogue.open(folder)
    with closing(ShardStore(data)) as store:
        store.check_files()
        return _digest(*(bytes(sample) for sample in store.read(np.arange(len(data)))))


def _check_training(folder: Path, base: Path) -> object:
    from fsl_dist.config import load_run
    from fsl_dist.training.launch import check_run

    config = load_run(base / "run")
    from dataclasses import replace

    return check_run(replace(config, data=replace(config.data, dataset=str(folder), version=0)))


def _open_run(folder: Path) -> object:
    import fsl_dist
    from index.base.settings import dump

    run = fsl_dist.open_run(folder)
    return {"config": json.dumps(dump(run.config), sort_keys=True), "best": run.best, "metrics": run.metrics}


def _predict(folder: Path, base: Path) -> object:
    import fsl_dist

    images = [str(base / "pictures" / f"class-{number}" / "03.png") for number in range(3)]
    with fsl_dist.open_run(folder) as run:
        found = run.predict(images, k=2)
    return json.dumps(
        [
            [asdict(label) for label in p.labels] if hasattr(p, "labels") else asdict(p)
            for p in found.predictions
        ]
    )


def _evaluate(folder: Path) -> object:
    import fsl_dist

    with fsl_dist.open_run(folder) as run:
        return json.dumps(run.evaluate("knn").to_json()["metrics"], sort_keys=True)


def _search(folder: Path) -> object:
    from index import open_index

    index = open_index(folder)
    queries = np.random.default_rng(1).standard_normal((20, index.dim), dtype=np.float32)
    parameters = {name: 10**6 for name in index.parameters if name == "nprobe"}
    found = index.search(queries, 5, parameters=parameters)
    own = index.search(queries, 3, same_class=np.arange(20) % 5)
    return [index.num_vectors, _digest(found.ids, found.distances, own.ids, own.distances)]


def _open_writer(folder: Path) -> object:
    from index import IndexWriter

    writer = IndexWriter(folder)
    contents = writer._latest()
    return [
        contents.num_vectors,
        _digest(contents.ids, contents.labels, contents.changes.hidden, contents.changes.ids),
    ]


def _read_sweep_table(folder: Path) -> object:
    import fsl_dist
    from index.base.settings import dump
    from tune.records import SweepFolder, read_evaluation

    sweep, records = fsl_dist.Sweep(folder), SweepFolder(folder)
    trials = records.trials()
    scores = [[asdict(cell) for cell in read_evaluation(trial.folder)] for trial in trials]
    config = json.dumps({**dump(sweep.config), "dir": ""}, sort_keys=True, default=str)
    facts = [
        repr([(t.number, t.point, t.draw, t.result) for t in trials]),
        repr(records.sessions()),
        repr(scores),
    ]
    return {"config": config, "facts": facts, "metrics": [asdict(report) for report in records.reports()]}


def _report(folder: Path, seed: int) -> object:
    import fsl_dist

    if seed % _REPORT_EVERY:
        return None
    return fsl_dist.Sweep(folder).report().text.replace(str(folder), "")


def _read_given(path: Path) -> object:
    from index.writing.vector_files import check_file, read_array, read_integers

    if path.name == "vectors.npy":
        return [check_file(path), _digest(np.asarray(read_array(path)))]
    if path.name == "columns.npy":
        return _digest(np.asarray(read_array(path)))
    if path.name == "labels.npy":
        return _digest(read_integers(path))
    from fsl_dist.config import load_config

    if path.suffix == ".yaml":
        return repr(load_config(path, []))
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    return repr(load_config(None, [line.replace(": ", "=", 1) for line in lines if line]))


def _outcome(use: Callable[[], object]) -> list[object]:
    """["answer", …], ["refused", line] or ["failed", traceback]."""
    from index.base.errors import FslDistError

    try:
        return ["answer", json.loads(json.dumps(use(), default=str))]
    except (FslDistError, OSError) as error:
        text = str(error)
        return ["refused", text] if "\n" not in text and text else ["failed", f"not one line: {text!r}"]
    except BaseException:
        return ["failed", traceback.format_exc()[-1500:]]


def _judge(done: Damage, expected: dict, found: dict, diagnosis: list) -> str:
    """What is wrong with the outcomes of a case; nothing, if empty."""
    for use, (state, answer) in found.items():
        if state == "failed":
            return f"{use}: {answer}"
        if state == "answer" and done.is_certain and not _is_same(done, answer, expected[use][1]):
            return f"{use}: another answer: {str(answer)[:300]} instead of {str(expected[use][1])[:300]}"
    if diagnosis[0] == "failed":
        return f"doctor: {diagnosis[1]}"
    refused = [use for use, (state, _) in found.items() if state == "refused"]
    if refused and diagnosis[0] == "answer" and diagnosis[1]:
        return f"doctor finds nothing, and {refused[0]} refuses: {found[refused[0]][1]}"
    return ""


def _is_same(done: Damage, answer: object, expected: object) -> bool:
    if answer == expected:
        return True
    if done.path == "reports.jsonl" and done.reaches_end and isinstance(answer, str):
        return True  # the report counts them
    if not (
        done.path.endswith(".jsonl")
        and done.reaches_end
        and isinstance(answer, dict)
        and isinstance(expected, dict)
    ):
        return False
    # A log's last lines may not have been written when its process was killed.
    lines, whole = answer["metrics"], expected["metrics"]
    return whole[: len(lines)] == lines and {**answer, "metrics": []} == {**expected, "metrics": []}


def _is_sound(folder: Path) -> object:
    import fsl_dist

    return fsl_dist.doctor(folder).is_sound


def _reset(folder: Path, sound: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)


def work(base: Path, scratch: Path) -> None:
    """Do the cases that stdin names."""
    from index.base import checksums

    logging.disable(logging.CRITICAL)
    expected: dict[str, dict] = {}
    for line in sys.stdin:
        kind, seed = line.split()
        folder = scratch / kind
        _reset(folder, base / kind)
        if kind not in expected:
            uses = uses_of(kind, folder, base, 0)
            expected[kind] = {name: _outcome(use) for name, use in uses.items()}
            _reset(folder, base / kind)
        draw = random.Random(f"{kind} {seed}")
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and not set(path.relative_to(folder).parts) & set(_NOT_DAMAGED)
        )
        # By kinds of file first: a run has twenty files of vectors for one checkpoint.json.
        suffix = draw.choice(sorted({path.suffix + path.stem[:3] for path in paths}))
        path = draw.choice([path for path in paths if path.suffix + path.stem[:3] == suffix])
        done = damage(folder, path, draw)
        if kind == "given":  # nobody knows what users' files said
            done = Damage(done.kind, done.path, done.detail, is_certain=False)
        checksums._named.clear()
        uses = uses_of(kind, folder, base, int(seed))
        before = expected[kind]
        if kind == "sweep" and int(seed) % _REPORT_EVERY:
            before = {**before, "report": ["answer", None]}
        found = {name: _outcome(use) for name, use in uses.items()}
        diagnosis = (
            ["answer", False] if kind == "given" else _outcome(lambda folder=folder: _is_sound(folder))
        )
        states = {name: state for name, (state, _) in found.items()}
        result = {
            "kind": kind,
            "seed": seed,
            "damage": asdict(done),
            "states": states,
            "doctor": diagnosis[1] if diagnosis[0] == "answer" else diagnosis[0],
            "problem": _judge(done, before, found, diagnosis),
            "refusal": next((str(answer) for state, answer in found.values() if state == "refused"), ""),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
