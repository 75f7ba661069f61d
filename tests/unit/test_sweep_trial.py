"""One trial without Ray: stopped by its stop rule, or trained to the end and scored as `evaluate` scores."""

from dataclasses import replace
from pathlib import Path

import pytest

from fsl_dist.config import RunConfig
from fsl_dist.data.config import DataConfig
from fsl_dist.errors import StaleOwnerError
from fsl_dist.evaluation.report import EvaluationReport, evaluate_run, evaluate_settings
from fsl_dist.methods.pcn import PCNConfig
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.models.config import BackboneConfig
from fsl_dist.samplers.episode import EpisodeConfig
from fsl_dist.training.config import TrainingConfig
from fsl_dist.training.loop import Watch
from fsl_dist.training.runlog import read_validations
from fsl_dist.training.trained import find_checkpoint, open_trained
from index.base.files import Owner
from tune.records import SweepFolder, read_evaluation
from tune.space import Knob
from tune.sweeps.config import SweepConfig
from tune.sweeps.trial import progress_of, run_trial


class StopsAfter:
    """Stops every trial after some epochs, and remembers its inputs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.told: list[tuple[int, float]] = []

    def watch(self, trial: int) -> Watch:
        def stops(epoch: int, value: float) -> bool:
            self.told.append((epoch, value))
            return epoch >= self.epochs

        return stops

    def is_stopped(self, trial: int) -> bool:
        return any(epoch >= self.epochs for epoch, _ in self.told)


def small_sweep(base_novel: Path, folder: Path) -> SweepConfig:
    base = RunConfig(
        data=DataConfig(
            dataset=str(base_novel),
            channels=1,
            resize="exact",
            resize_size=16,
            image_size=16,
            mean=(0.5,),
            std=(0.5,),
            flip=False,
            decoder="torchvision",
        ),
        backbone=BackboneConfig(name="conv4", width=8),
        method=PCNConfig(clusters=2, novel_clusters=2, temperature=1.0),
        episode=EpisodeConfig(n_way=4, k_shot=3, n_query=2, per_step=1, per_epoch=4),
        training=TrainingConfig(epochs=3, patience=5, lr=1e-3),
        evaluation=EvaluationConfig(delta_tau=(0.0,), draws=2, novel_shots=4, kmeans_runs=2),
    )
    return SweepConfig(
        dir=str(folder),
        base=base,
        space={"method.memory": Knob(choice=(0.0, 0.5))},
        evaluation={
            "k_p": (1, 3),
            "delta_tau": (-0.5, 0.0),
            "novel_clusters": (1, 3),
            "base_clusters": (1, 2),
        },
    )


def test_a_trial_ends_where_its_judge_says_and_is_not_scored(base_novel: Path, tmp_path: Path) -> None:
    config = small_sweep(base_novel, tmp_path)
    trial = SweepFolder(tmp_path).start(1, 0, {"method.memory": 0.5})
    judge = StopsAfter(2)
    result = run_trial(config, trial, judge)
    assert (result.state, result.epochs) == ("stopped", 2)
    assert [epoch for epoch, _ in judge.told] == [1, 2]
    (start, *measured) = (value for _, value in read_validations(trial.folder, "mca/base"))
    assert measured == [value for _, value in judge.told]  # the scheduler is not asked about the start
    assert result.value == max(start, *measured)
    assert list(read_evaluation(trial.folder)) == []
    assert find_checkpoint(trial.folder).is_dir()
    # Interrupted after the message, before it was recorded: nothing is retrained.
    again = run_trial(config, trial, judge)
    assert (again.state, again.epochs, again.value) == ("stopped", 2, result.value)
    assert len(judge.told) == 2


def test_a_grid_on_one_embedding_scores_as_evaluations_one_by_one(base_novel: Path, tmp_path: Path) -> None:
    config = small_sweep(base_novel, tmp_path)
    trial = SweepFolder(tmp_path).start(1, 0, {"method.memory": 0.5})
    result = run_trial(config, trial, StopsAfter(99))
    assert (result.state, result.epochs, result.error) == ("finished", 3, "")
    cells = list(read_evaluation(trial.folder))
    assert [cell.settings for cell in cells] == [
        {"novel_clusters": novel, "base_clusters": base} for novel in (1, 3) for base in (1, 2)
    ]
    plain = replace(config.base.evaluation, k_p=(1, 3), delta_tau=(-0.5, 0.0))
    for cell in cells:
        alone = evaluate_run(trial.folder, settings=replace(plain, **cell.settings))
        assert cell.metrics == alone.to_json()["metrics"]
    assert cells[0].metrics != cells[3].metrics


def test_what_settings_share_does_not_mix_them_up(base_novel: Path, tmp_path: Path) -> None:
    config = small_sweep(base_novel, tmp_path)
    trial = SweepFolder(tmp_path).start(1, 0, {})
    run_trial(config, trial, StopsAfter(99))
    plain = config.base.evaluation
    several = [
        plain,
        replace(plain, novel_shots=2),
        replace(plain, draws=3),
        replace(plain, kmeans_runs=1),
        plain,
    ]
    together = evaluate_settings(open_trained(trial.folder), several)
    apart: list[EvaluationReport] = [evaluate_run(trial.folder, settings=one) for one in several]
    assert together == apart
    assert together[0] == together[4]
    for protocol in ("knn", "few_shot_knn", "kmeans"):
        (shared, _) = evaluate_settings(open_trained(trial.folder), [plain, plain], protocol=protocol)
        assert shared == evaluate_run(trial.folder, settings=plain, protocol=protocol)


def test_a_driver_that_was_replaced_scores_nothing_and_writes_no_error(
    base_novel: Path, tmp_path: Path
) -> None:
    config = small_sweep(base_novel, tmp_path)
    stale = Owner.claim(tmp_path)
    Owner.claim(tmp_path)
    trial = SweepFolder(tmp_path).start(1, 0, {})
    with pytest.raises(StaleOwnerError, match="stops writing"):
        run_trial(config, trial, StopsAfter(99), owner=stale)
    assert find_checkpoint(trial.folder), "a run has an owner of its own"
    bad = SweepFolder(tmp_path).start(2, 1, {"training.lr": 1e30})
    with pytest.raises(StaleOwnerError):
        run_trial(config, bad, StopsAfter(99), owner=stale)
    for folder in (trial.folder, bad.folder):
        assert not list(folder.glob("e*.*")), "neither evaluation.json nor error.txt"


def test_a_run_that_is_left_has_no_result_and_goes_on(base_novel: Path, tmp_path: Path) -> None:
    config = small_sweep(base_novel, tmp_path)
    trial = SweepFolder(tmp_path).start(1, 0, {})
    left = StopsAfter(2)
    assert run_trial(config, trial, left, is_left=lambda: True) is None
    assert progress_of(trial, "stopped").epochs == 2
    result = run_trial(config, trial, StopsAfter(99))
    assert result is not None
    assert (result.state, result.epochs) == ("finished", 3)
