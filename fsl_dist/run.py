"""A training run from Python: opened, then evaluated, used on images, indexed, exported."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig, load_evaluation, load_run
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import DataError, RequestError
from fsl_dist.progress import counter
from fsl_dist.run_text import describe_run, progress_of, run_table
from index.base.checksums import read_json
from index.base.extras import require
from index.base.object_cache import bring_file, working_folder
from index.base.settings import to_overrides

if TYPE_CHECKING:
    from cluster.view.server import ViewServer
    from fsl_dist.evaluation.report import EvaluationReport
    from fsl_dist.heads import AddedClass, Choice, HeadConfig
    from fsl_dist.image_files import ImageLike
    from fsl_dist.plots.explaining import ExplainReport
    from fsl_dist.predicting import PredictionReport, Support
    from fsl_dist.training.launch import TrainingSummary
    from fsl_dist.training.trained import TrainedRun
    from index import LocalIndex, ShardedIndex

PathLike: TypeAlias = str | os.PathLike[str]
Settings: TypeAlias = Mapping[str, object] | Sequence[str]
"""dotted keys and their values, such as {"training.epochs": 5}; or texts as on the command line, "training.epochs=5"
"""


def open_run(dir: PathLike) -> "Run":
    """Open a run that was trained here or elsewhere.

    Args:
        dir: its folder, or its address at s3:// or gs://; or the folder of a fit, for the run that it chose.

    Returns:
        The run; its network is loaded when it is first used.

    Raises:
        ConfigError: `dir` is not a run folder.
        VersionError: the record of the fit is damaged.
    """
    record = Path(os.fspath(dir)) / "fit.json"
    if record.is_file():
        found = read_json(record, root=record.parent, name=record.name)
        return Run(record.parent / str(found["final_run"]))
    return Run(os.fspath(dir))


class Run:
    """An opened training run. Its best checkpoint (or the last, without validation) is loaded on first use.

    Args:
        dir: the run's folder, or its address at s3:// or gs://.

    Raises:
        ConfigError: `dir` is not a run folder.
    """

    def __init__(self, dir: PathLike) -> None:
        self.dir: Path = working_folder(os.fspath(dir))
        """folder of the run; for a run at an object store, the local folder to which its files are copied"""
        self.config: RunConfig = load_run(self.dir)
        """the configuration that it was trained with"""
        self.summary: TrainingSummary | None = None
        """how the training ended, where this process trained it"""

    def __repr__(self) -> str:
        return describe_run(self)

    def _repr_html_(self) -> str:
        return run_table(self)

    @cached_property
    def data(self) -> Catalogue:
        """The data set that it was trained on, at that version."""
        return Catalogue.open(self.config.data.dataset, self.config.data.version or None)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The training log, one mapping per step and validation: `step`, `epoch`, `train/loss`, …"""
        from fsl_dist.training.runlog import METRICS_FILE, read_metrics

        bring_file(self.dir / METRICS_FILE)
        return read_metrics(self.dir)

    @property
    def best(self) -> float | None:
        """Best validation of `config.stop_metric`; None where the run did not validate."""
        progress = progress_of(self)
        return progress.best_value if progress and progress.best_step >= 0 else None

    @cached_property
    def trained(self) -> "TrainedRun":
        """Its network, opened for its data set."""
        from fsl_dist.training.trained import open_trained

        return open_trained(self.dir)

    @property
    def head(self) -> "HeadConfig | None":
        """The head that it predicts with; None where none was chosen."""
        from fsl_dist.heads.head_file import read_head

        return read_head(self.dir)

    def choose_head(self, metric: Literal["mcr", "acc"] = "mcr") -> "Choice":
        """Score all heads on the validation images, and write the best one to RUN/head.json; `predict` uses it.

        Args:
            metric: criterion for the best head: mean class recall or accuracy.

        Returns:
            All heads with their scores, and the best one.

        Raises:
            RequestError: there are no validation images of classes that were trained on.
        """
        from fsl_dist.evaluation.run_head import choose_run_head

        return choose_run_head(self.trained, metric)

    @property
    def classes(self) -> list[str]:
        """Names of the classes that it was trained on, then of those that were added."""
        from fsl_dist.adding import class_names_of
        from fsl_dist.heads.added_classes import read_classes

        return [*class_names_of(self.trained), *(added.name for added in read_classes(self.dir))]

    def add_class(self, name: str, images: "Sequence[ImageLike]") -> "AddedClass":
        """Add a class by a few images, without training; it is stored in the run and included in every prediction.

        Args:
            name: of the class.
            images: at least one: paths, PIL images and uint8 arrays [H, W], [H, W, 1] or [H, W, 3].

        Returns:
            The added class, with embeddings.

        Raises:
            RequestError: the run has a class of that name, there is no image, or the run was trained on feature
                vectors.
            DataError: an image is unreadable; nothing was added.
        """
        from fsl_dist.adding import add_from_images

        return add_from_images(self.trained, name, images)

    def remove_class(self, name: str) -> list[str]:
        """Remove a class that was added; it may be added again.

        Args:
            name: of the class.

        Returns:
            The classes that are left.

        Raises:
            RequestError: no class of that name was added.
        """
        from fsl_dist.heads.added_classes import remove_class

        remove_class(self.dir, name)
        return self.classes

    def evaluate(
        self,
        protocol: str | None = None,
        *,
        index: "ShardedIndex | PathLike | None" = None,
        settings: Settings = (),
    ) -> "EvaluationReport":
        """Score the run on its data set. Embeddings are cached in its folder, so that scoring again embeds nothing.

        Args:
            protocol: one of knn, prototypes, softmax, retrieval, maps, kmeans, spectral, few_shot_knn, fine_tune,
                head; by default those of the method.
            index: index of the training images, built by `build_index`, to search instead of one that is built here.
            settings: `evaluation.*` keys that take precedence over the run's.

        Returns:
            The scores by name, 0 … 1; over several draws `mean`, `std`, `n`. `start` has those before training, if any.

        Raises:
            RequestError: there is nothing to score, the protocol does not apply, or `index` is of another network or
                data.
        """
        evaluation = load_evaluation(self.dir, to_overrides(settings))
        from fsl_dist.evaluation.report import evaluate_settings, with_start
        from index.search import open_index

        gallery = open_index(Path(index)) if isinstance(index, str | os.PathLike) else index
        (report,) = evaluate_settings(self.trained, [evaluation], protocol=protocol, gallery=gallery)
        return with_start(report, self.trained, protocol=protocol, settings=evaluation)

    def embed(
        self,
        images: "Sequence[ImageLike] | Sequence[int] | NDArray[np.int64] | Catalogue",
        *,
        out: PathLike | None = None,
    ) -> NDArray[np.float32]:
        """Embed images, without augmentation.

        Args:
            images: paths, PIL images and uint8 arrays [H, W], [H, W, 1] or [H, W, 3]; or ids of the run's data set;
                or a data set, for all of its images.
            out: for a data set, a .npy file that is written block by block; the result is then a map of it.

        Returns:
            float32 [n, dim], one row for each image; for a data set, row = sample id.

        Raises:
            DataError: an image cannot be read or decoded; its position is named.
            RequestError: something is not an image, or an id is not of the data set.
        """
        if isinstance(images, Catalogue):
            from fsl_dist.indexing import embed_data

            return embed_data(self.dir, images, None if out is None else Path(out))
        if out is not None:
            raise RequestError(f"out={out} is for a data set's embeddings; those of a list are returned")
        from fsl_dist.image_files import ImageFiles, are_ids, name_images

        if are_ids(images):
            ids = np.asarray(images, dtype=np.int64)
            self.trained.catalogue.locate(ids)
            return self.trained.embedder.embed(ids)
        named = name_images(images)  # type: ignore[arg-type]  # ids were answered above
        with ImageFiles(self.trained.embedder, self.trained.config, self.trained.catalogue) as files:
            vectors, _ = files.embed(named)
            for failed in files.failed:
                position = [image.name for image in named].index(failed.image)
                raise DataError(f"images[{position}]: {failed.image} {failed.reason}")
        return vectors

    def predict(
        self, images: "Sequence[ImageLike]", *, support: "Support | None" = None, k: int = 5
    ) -> "PredictionReport":
        """Predict the best classes of each image.

        Args:
            images: paths, PIL images and uint8 arrays [H, W], [H, W, 1] or [H, W, 3].
            support: images of novel classes: a folder with one folder per class, or a mapping from names to images.
            k: number of classes per image, best first.

        Returns:
            One prediction per readable image; the others are in `failed`. Scores are calibrated probabilities of
            `head`; without one, probabilities (pcn) or shares of the neighbours' votes.

        Raises:
            RequestError: the run was trained on feature vectors, or `support` has no usable class, or a training class.
        """
        from fsl_dist.predicting import predict

        return predict(self.trained, images, support=support, k=k)

    def explain(
        self, images: "Sequence[ImageLike]", *, out: PathLike | None = None, k: int = 5, maps: bool = True
    ) -> "ExplainReport":
        """Explain predictions by the nearest training images, their vote, and activation maps of each distance (CHAI).

        With a head or added classes, an explanation also contains their prediction, and reports a different vote.

        Args:
            images: paths, PIL images and uint8 arrays [H, W], [H, W, 1] or [H, W, 3].
            out: folder for index.html and a PNG per image; without it nothing is written.
            k: number of training images per image.
            maps: compute activation maps; the network's embedding must be the mean of feature maps.

        Returns:
            One explanation per readable image; the others are in `failed`. A notebook shows pictures.

        Raises:
            RequestError: the network has no maps, `k` is above the number of training images, or `out` is a file.
        """
        from fsl_dist.plots.explaining import explain

        return explain(self.trained, images, out=None if out is None else Path(out), k=k, maps=maps)

    def view(self, *, host: str = "127.0.0.1", port: int = 0, token_env: str | None = None) -> "ViewServer":
        """Show its answers and their evidence in a browser, until the result is closed; needs `fsl-dist[serve]`.

        Args:
            host: address to listen on; one that other machines reach needs a token.
            port: 0: a free one.
            token_env: environment variable with the token that requests must contain.

        Returns:
            The running server: `url`, `close()`; a notebook shows the link.

        Raises:
            RequestError: the run was trained on feature vectors, a package is missing, or the address cannot be used.
        """
        require("fastapi")
        from cluster.view.server import ViewServer

        return ViewServer([self.dir], host=host, port=port, token_env=token_env)

    def report(self, out: PathLike, *, seconds: float = 120.0) -> Path:
        """Write a report: scores, confusion, mistakes with their evidence, likely label errors, and next steps.

        Args:
            out: folder for report.html, which contains its pictures, and label_errors.csv, an input for `resplit`.
            seconds: time limit for the measurements after embedding; parts that do not fit are listed.

        Returns:
            The page.

        Raises:
            RequestError: the run was trained on feature vectors, or `out` is a file.
        """
        from fsl_dist.plots.fit_report.of_run import report_run

        return report_run(self.trained, Path(out), seconds=seconds)

    def build_index(
        self,
        out: PathLike,
        *,
        data: "Catalogue | PathLike | None" = None,
        workers: int = 1,
        progress: bool = True,
        **settings: object,
    ) -> "LocalIndex":
        """Embed the training images and publish them as the next version of a neighbour index.

        Calling it again after a kill resumes the build.

        Args:
            out: folder of the index, new or existing.
            data: data set whose train split is indexed; by default the run's own.
            workers: number of Ray tasks; 1 needs no Ray.
            progress: show a progress line on a terminal or in a notebook.
            **settings: the `index.*` keys of a configuration, such as `kind="ivf_flat"` or `metric="cosine"`.

        Returns:
            The opened index. Its ids are sample ids of the data set.

        Raises:
            ConfigError: a setting is unknown or breaks a rule.
            RequestError: the data set has no train split.
        """
        from fsl_dist.indexing import build_index_of_run

        return build_index_of_run(
            self.dir,
            self.data,
            out,
            data=data,
            workers=workers,
            settings=settings,
            progress=counter() if progress else None,
        )

    def export(self, out: PathLike) -> Path:
        """Export the embedder to a file for other programs, with its image preprocessing, and verify that file.

        The exported model maps normalised images, float32 [n, C, S, S] with any n, to embeddings, float32 [n, dim].

        Args:
            out: a file that ends in .onnx (needs `pip install 'fsl-dist[export]'`), .safetensors or .pt2
                (`torch.export`).

        Returns:
            The file.

        Raises:
            RequestError: `out` has another ending, or a package is missing.
            TrainingError: the file's embeddings differ from the run's.
        """
        from fsl_dist.export import export

        path = working_folder(os.fspath(out))
        export(self.trained, path)
        return path

    def close(self) -> None:
        """Release the network and the data set's files; the next use loads them again."""
        if "trained" in self.__dict__:
            self.trained.close()
            del self.trained

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
