"""Calibrated confidence: a head's temperature."""

import dataclasses

import numpy as np

from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, Head
from fsl_dist.metrics.calibration import fit_temperature
from fsl_dist.metrics.few_shot import positions_among


def calibrate(config: HeadConfig, head: Head, validation: Embedded) -> HeadConfig:
    """Find the temperature that maximises the likelihood of a head's probabilities on validation images.

    It changes no prediction. `score_head` returns the expected calibration error before and after (`HeadScore.ece`).

    Args:
        config: of the head.
        head: fitted to images other than `validation`.
        validation: images; those of classes that the head lacks are ignored.

    Returns:
        `config` with that temperature; unchanged if no image is left.
    """
    return dataclasses.replace(
        config,
        temperature=temperature_of(head, head.scores(validation.vectors, validation.logits), validation),
    )


def temperature_of(head: Head, scores: np.ndarray, validation: Embedded) -> float:
    """The temperature of `calibrate`; scores: float64 [n, C], the head's of the validation images."""
    positions = positions_among(validation.labels, head.classes)
    known = positions >= 0
    return fit_temperature(scores[known], positions[known])
