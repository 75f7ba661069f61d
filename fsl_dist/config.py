"""The configuration of a run: its parts, and the rules between them.

Each part is a frozen dataclass next to the code that it configures. This file owns the tree, so that a dotted key
(`episode.n_way`) means the same in a YAML file, on the command line and in a sweep.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from fsl_dist.data.config import DataConfig
from fsl_dist.errors import ConfigError
from fsl_dist.methods.deep_knn import DeepKNNConfig
from fsl_dist.methods.method import Method, MethodContext, MethodSettings, PrototypeTraits
from fsl_dist.methods.mining.config import MiningConfig
from fsl_dist.methods.registry import find_methods
from fsl_dist.metrics.config import CLUSTER_SCORES, EvaluationConfig
from fsl_dist.models.config import TIMM, TIMM_INPUT, BackboneConfig
from fsl_dist.samplers.episode import EpisodeConfig
from fsl_dist.shipped import find_config, shown_name
from fsl_dist.training.config import TrainingConfig, WorkersConfig
from index.base.checksums import encode_yaml, read_yaml_text
from index.base.object_cache import bring_file, is_url, with_addresses, working_folder
from index.base.setting_types import show
from index.base.settings import lay_over, parse_overrides, parse_yaml, settings, to_yaml, validate
from index.base.variants import Variants
from index.config import IndexConfig

if TYPE_CHECKING:
    import torch

    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.selection import Selection

CONFIG_FILE = "config.yaml"

log = logging.getLogger(__name__)


@settings("run")
class RunFolder:
    """Location of a run, its random seed, and the trackers that receive its metrics."""

    dir: str = ""
    """the run's folder, or its place at s3:// or gs://; every worker must be able to write there"""
    seed: Annotated[int, Field(ge=0)] = 0
    """all random draws are functions of it"""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """trackers that receive the metrics in addition to `metrics.jsonl`: TensorBoard's files in the run's folder,
    MLflow, Weights & Biases; the last two need their extras (docs/how_to/trackers.md). Empty: none"""

    def __post_init__(self) -> None:
        for name in self.trackers:
            if self.trackers.count(name) > 1:
                raise ConfigError(f"run.trackers={list(self.trackers)} names {name} twice; name it once")


@settings("")
class RunConfig:
    """One training run, whole."""

    run: RunFolder = field(default_factory=RunFolder)
    data: DataConfig = field(default_factory=DataConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: Annotated[MethodSettings, Variants(find_methods)] = field(default_factory=DeepKNNConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    mining: MiningConfig = field(default_factory=MiningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        traits = self.method.traits
        self.method.check_episode(self.episode)
        if traits.prototypes is not None:
            _check_temperatures(traits.prototypes, self.evaluation)
        if self.data.features and traits.image_setting:
            raise ConfigError(
                f"{traits.image_setting} needs images; this run trains on data.features='{self.data.features}' "
                f"(leave out {traits.image_setting.partition('=')[0]}, or data.features)"
            )
        if self.mining.source == "dataset" and not traits.mines_dataset:
            raise ConfigError(
                f"mining.source=dataset belongs to method.kind=deep_knn; this run has method.kind={self.method.kind}"
            )
        if self.mining.is_beside and self.workers.launch == "process":
            raise ConfigError(
                "mining.run=beside needs Ray for its actors; workers.launch=process runs without Ray "
                "(workers.launch=auto)"
            )
        if self.stop_metric not in self.validation_metrics:
            raise ConfigError(
                f"training.stop_metric={self.stop_metric} is not measured for method.kind={self.method.kind}; "
                f"measured are {', '.join(self.validation_metrics)}"
            )
        if self.backbone.fc7 and not traits.has_classifier:
            raise ConfigError(
                "backbone.fc7=true adds a layer before the classifier of method.kind=cross_entropy; this run has "
                f"method.kind={self.method.kind}"
            )
        self._check_batch_norm()

    def _check_batch_norm(self) -> None:
        """A batch-norm group contains every class of an episode, and a chunk contains whole groups."""
        mode, group, chunk = (
            self.backbone.batch_norm,
            self.backbone.batch_norm_group,
            self.training.chunk_size,
        )
        is_cut = self.episode.scope == "global" or chunk > 0
        is_ghost = mode == "ghost" or (mode == "auto" and is_cut and not self.backbone.starts_from_weights)
        if self.method.traits.is_episodic and is_ghost and group < self.episode.n_way:
            raise ConfigError(
                f"backbone.batch_norm_group={group} is below episode.n_way="
                f"{self.episode.n_way}; a group that lacks classes leaks labels (raise the group, or lower n_way)"
            )
        if chunk and mode == "batch":
            raise ConfigError(
                f"backbone.batch_norm=batch with training.chunk_size={chunk} would take each chunk's own statistics "
                "(backbone.batch_norm=ghost or frozen does not depend on chunks)"
            )
        if chunk and is_ghost and chunk < group:
            raise ConfigError(
                f"training.chunk_size={chunk} is below backbone.batch_norm_group={group}, and no chunk cuts a group "
                f"(training.chunk_size={group} or more, or backbone.batch_norm=frozen)"
            )

    @property
    def uses_ray(self) -> bool:
        """Whether the run needs Ray: for several workers, or for mining actors that run concurrently."""
        return self.workers.uses_ray or self.mining.is_beside

    @property
    def num_cpus(self) -> int:
        """Number of CPU cores that the run requests from Ray."""
        mining = self.mining.actors * self.mining.cpus if self.mining.is_beside else 0
        return self.workers.num * self.workers.cpus + mining

    @property
    def head_lr_factor(self) -> float:
        """Learning rate of heads and classifier as a multiple of `training.lr`."""
        if self.training.head_lr_factor != "auto":
            return self.training.head_lr_factor
        return 10.0 if self.backbone.pretrained or self.backbone.weights else 1.0

    @property
    def stop_metric(self) -> str:
        """The validation metric that selects the best epoch."""
        if self.training.stop_metric:
            return self.training.stop_metric
        return self.method.traits.stop_metric or f"knn/mcr@{self.validation_k_p}"

    @property
    def validation_k_p(self) -> int:
        """k of the kNN vote where a single number is needed: 5, otherwise the first k that is scored."""
        return 5 if 5 in self.evaluation.k_p else self.evaluation.k_p[0]

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """Metrics that can select the best epoch: the stop metric's family (`knn/…`, `kmeans/…`), and the method's."""
        of_classes = ("mca", "recall@5", "recall@10", "balanced_recall@5", "balanced_recall@10")
        base = tuple(f"{score}/base" for score in of_classes)
        kmeans = tuple(f"kmeans/{score}" for score in CLUSTER_SCORES)
        traits = self.method.traits
        if traits.prototypes is not None:
            return (*base, *kmeans)
        knn = tuple(f"knn/{score}@{k_p}" for k_p in self.evaluation.k_p for score in ("acc", "mcr", "rs"))
        return (*knn, *(base if traits.has_classifier else ()), *traits.own_metrics, *kmeans)

    @property
    def stops_by_clusters(self) -> bool:
        """Whether the best epoch is chosen by clusters, which need no class that was trained on."""
        return self.stop_metric.startswith("kmeans/")

    @property
    def base_clusters(self) -> int:
        """Prototypes a base class is evaluated with."""
        own = self.method.traits.prototypes
        return self.evaluation.base_clusters or (own.clusters if own else 1)

    @property
    def novel_clusters(self) -> int:
        """Prototypes a novel class is evaluated with."""
        own = self.method.traits.prototypes
        return self.evaluation.novel_clusters or (own.novel_clusters if own else 1)

    def build_method(self, catalogue: "Catalogue", selection: "Selection", device: "torch.device") -> Method:
        """Build the method for the training images `selection`; raises RequestError if it cannot use the data."""
        return self.method.build(
            MethodContext(
                catalogue=catalogue,
                selection=selection,
                dataset=self.data.dataset,
                folder=Path(self.run.dir),
                seed=self.run.seed,
                num_workers=self.workers.num,
                batch_size=self.training.batch_size,
                kmeans_runs=self.evaluation.kmeans_runs,
                episode=self.episode,
                mining=self.mining,
                device=device,
            )
        )


def _check_temperatures(method: PrototypeTraits, evaluation: EvaluationConfig) -> None:
    """τ_test = τ_train + Δτ must be above 0 (PCN, section 3.1.2)."""
    illegal = [delta for delta in evaluation.delta_tau if method.temperature + delta <= 0]
    if illegal:
        legal = [delta for delta in evaluation.delta_tau if delta not in illegal]
        raise ConfigError(
            f"evaluation.delta_tau={illegal[0]:g} with method.temperature={method.temperature:g} gives a test "
            f"temperature of {method.temperature + illegal[0]:g}, which must be above 0 "
            + (
                f"(evaluation.delta_tau={legal} keeps the rest)"
                if legal
                else f"(use any Δτ above {-method.temperature:g})"
            )
        )


def parse_config(text: str, overrides: Sequence[str], place: str) -> RunConfig:
    """Parse YAML `text`, apply `key=value` overrides, and check every key and value.

    Raises ConfigError with the key, the rule, the value and `place`.
    """
    return _build(parse_yaml(text, place), overrides, place)


def read_config(named: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of a run's YAML file over those of its `base` if it has one, and the file names for errors.

    `base` is the path of another such file, relative to this one's folder, or the name of a shipped configuration; a
    base has no base itself. Raises ConfigError.
    """
    path = find_config(named)
    tree = _read_file(path)
    if "base" not in tree:
        return tree, shown_name(path)
    base = tree.pop("base")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"base={show(base)} must be the path or the name of a run's YAML file ({path})")
    try:
        below = find_config(Path(base).expanduser(), path.parent)
    except ConfigError as error:
        raise ConfigError(f"base: {error} ({path})") from None
    shared = _read_file(below)
    if "base" in shared:
        raise ConfigError(
            f"base={base} has base={shared['base']} itself, and bases are one level deep: use that one, and set "
            f"here what {base} changes ({path})"
        )
    return lay_over(RunConfig, shared, tree, str(below)), f"{shown_name(path)} with base={base}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={path} cannot be read: {error}") from error


def _build(tree: Mapping[str, Any], overrides: Sequence[str], place: str) -> RunConfig:
    if overrides:
        tree = lay_over(RunConfig, tree, parse_overrides(overrides), place)
        named = {item.partition("=")[0].strip() for item in overrides}
        if "method.kind" in named and "mining.source" not in named:
            tree = _without_mining(tree, place)
        place = f"{place} and the settings given"
    return _open_places(validate(RunConfig, _with_own_input(tree), place))


def _with_own_input(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `tree` with the `data.*` settings that its timm network expects of images, where the tree sets none."""
    backbone, data = tree.get("backbone"), tree.get("data", {})
    name = backbone.get("name") if isinstance(backbone, Mapping) else None
    if not isinstance(name, str) or not name.startswith(TIMM) or not isinstance(data, Mapping):
        return tree
    if set(TIMM_INPUT) <= set(data):  # a run's own file, which is to be read without torch
        return tree
    from fsl_dist.models.timm_backbone import input_settings

    return {**tree, "data": {**data, **input_settings(name, data)}}


def _without_mining(tree: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """`tree` without `mining.source=dataset` where its method mines no data set: that key is of another method, too."""
    method, mining = tree["method"], tree.get("mining")
    load = find_methods().get(method["kind"]) if isinstance(method["kind"], str) else None
    if load is None or not isinstance(mining, Mapping) or mining.get("source") != "dataset":
        return tree
    if validate(load(), method, f"{place} and the settings given", "method").traits.mines_dataset:
        return tree
    log.warning(f"method.kind={method['kind']} mines no data set and drops mining.source=dataset in {place}")
    return {**tree, "mining": {name: value for name, value in mining.items() if name != "source"}}


def _open_places(config: RunConfig) -> RunConfig:
    """The same configuration with working folders for s3:// and gs:// addresses; `render_config` reverses it."""

    def local(place: str) -> str:
        return str(working_folder(place)) if is_url(place) else place

    return replace(
        config,
        run=replace(config.run, dir=local(config.run.dir)),
        data=replace(config.data, dataset=local(config.data.dataset), features=local(config.data.features)),
        backbone=replace(config.backbone, weights=local(config.backbone.weights)),
    )


def load_config(path: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Load the configuration of a YAML file (None: all defaults) with `key=value` overrides.

    If an override selects another method, the settings of the file's method are dropped, with a warning (`lay_over`).
    """
    if path is None:
        return _build(parse_overrides(overrides), (), "the settings given")
    tree, place = read_config(path)
    return _build(tree, overrides, place)


def load_resumed(overrides: Sequence[str]) -> RunConfig:
    """Load the configuration that a run was started with, found by `run.dir` in the overrides, and apply the others.

    For a folder without a run all settings are defaults: there is nothing to resume yet.
    """
    named = parse_overrides(overrides).get("run", {}).get("dir", "")
    stored = working_folder(str(named)) / CONFIG_FILE
    bring_file(stored)
    if named and not stored.is_file() and not any(item.startswith("data.dataset=") for item in overrides):
        raise ConfigError(f"run.dir={named} has no run to resume: {CONFIG_FILE} is missing")
    return _parse_stored(stored, overrides) if named and stored.is_file() else load_config(None, overrides)


def resolve_paths(config: RunConfig) -> RunConfig:
    """The same configuration with absolute paths: workers and later commands have other working directories."""

    def absolute(path: str) -> str:
        return str(working_folder(path).expanduser().resolve()) if path else ""

    return replace(
        config,
        run=replace(config.run, dir=absolute(config.run.dir)),
        data=replace(
            config.data, dataset=absolute(config.data.dataset), features=absolute(config.data.features)
        ),
        backbone=replace(config.backbone, weights=absolute(config.backbone.weights)),
    )


def load_run(run: Path) -> RunConfig:
    """The resolved configuration a run was started with, from its folder."""
    path = working_folder(run) / CONFIG_FILE
    bring_file(path)
    if not path.is_file():
        raise ConfigError(f"{run} is not a run folder: {CONFIG_FILE} is missing")
    return _parse_stored(path, [])


def _parse_stored(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Load a run's own configuration file, with all settings of its version. VersionError if it was changed."""
    tree = parse_yaml(read_yaml_text(path, root=path.parent), str(path))
    if not isinstance(tree.get("training", {}), dict):
        raise ConfigError(f"training={tree['training']} must be a mapping of keys to values ({path})")
    tree["training"] = {**_BEFORE_SCHEDULES, **tree.get("training", {})}
    return _build(tree, overrides, str(path))


_BEFORE_SCHEDULES = {"schedule": "milestones", "warmup": 0, "clip_norm": 0, "head_lr_factor": 1}
"""training settings that are missing in files of earlier versions, with the values that they had then"""


def load_evaluation(run: Path, overrides: Sequence[str]) -> EvaluationConfig:
    """A run's `evaluation.*` settings with overrides; raises ConfigError for keys that training has fixed."""
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith("evaluation."):
            if key in {field.name for field in fields(EvaluationConfig)}:
                raise ConfigError(f"unknown key {key}; did you mean evaluation.{key}?")
            raise ConfigError(
                f"{key} was fixed when {run} was trained; evaluate changes evaluation.* keys only"
            )
    load_run(run)
    return _parse_stored(run / CONFIG_FILE, overrides).evaluation


def render_config(config: RunConfig) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return with_addresses(to_yaml(config))


def encode_config(config: RunConfig) -> bytes:
    """Encode the configuration file of a run's folder."""
    return encode_yaml(render_config(config))
