"""What the routes answer: plain values, with pictures as data URLs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.plots.map_overlay import map_range, tint
from fsl_dist.predicting import ScoredClass
from fsl_dist.viewing.familiarity import Judgement
from fsl_dist.viewing.run_view import Answer, Asked, Neighbour, RunView, Sample, encode_picture

_MAP_SIDE = 224


@dataclass(frozen=True, slots=True)
class AnswerReply:
    """The answer to one image."""

    run: str
    """name of the run's folder"""
    answered_by: str
    """what ranked the classes"""
    is_calibrated: bool
    """whether the scores were calibrated on validation images"""
    num_training: int
    """training images that were compared"""
    picture: str
    """data URL of the part of the image that the network sees"""
    side: int
    """pixels of a side of `picture`"""
    sample: Sample | None
    """the image itself, if it is of the data set"""
    classes: list[ScoredClass]
    """best first"""
    judgement: Judgement | None
    """whether the image is unlike the data set; null if there are too few images to tell"""
    compared_with: str
    """the images that the judgement compares with"""
    measure: str
    """what the neighbours' `distance` is: distance, cosine or product"""
    neighbours: list[Neighbour]
    """nearest first"""


@dataclass(frozen=True, slots=True)
class MapPicture:
    """An activation map in colours."""

    picture: str
    """data URL of a PNG with transparency, to be laid over the image"""
    low: float
    """value at the beginning of the colour scale"""
    high: float
    """value at its end"""


@dataclass(frozen=True, slots=True)
class Activation:
    """The maps of the image and of one of the data set."""

    id: int
    """the sample"""
    is_same: bool
    """the network sees no difference between the two images"""
    query: MapPicture
    """of the image"""
    result: MapPicture
    """of the sample"""
    note: str
    """which layer the maps are from"""


@dataclass(frozen=True, slots=True)
class NovelReply:
    """A novel class."""

    name: str
    images: int


@dataclass(frozen=True, slots=True)
class ListsState:
    """Whether the lists of suspicious images are computed."""

    is_ready: bool
    problem: str
    """why they cannot be computed; empty if there is no problem"""
    numbers: dict[str, int]
    """images of each list"""


@dataclass(frozen=True, slots=True)
class CorrectionReply:
    """A decision as it was written to the table."""

    key: str
    label: str
    """its class from now on; empty: the image is left out"""
    was: str
    decision: str


def answer_reply(view: RunView, answer: Answer) -> AnswerReply:
    """An answer as plain values."""
    return AnswerReply(
        run=view.name,
        answered_by=view.answerer.name,
        is_calibrated=view.answerer.is_calibrated,
        num_training=view.gallery.num_vectors,
        picture=_url(answer.pixels),
        side=len(answer.pixels),
        sample=answer.sample,
        classes=answer.classes,
        judgement=answer.judgement,
        compared_with=view.familiarity.source,
        measure=view.measure,
        neighbours=answer.neighbours,
    )


def maps_reply(view: RunView, image: Asked, samples: Sequence[int]) -> list[Activation]:
    """The activation maps of an image with some samples."""
    return [
        Activation(sample, pair.is_same, _colour(pair.query), _colour(pair.result), pair.layer.note)
        for sample, pair in zip(samples, view.maps(image, samples), strict=True)
    ]


def _colour(plane: NDArray[np.float64]) -> MapPicture:
    return MapPicture(_url(np.asarray(tint(plane, _MAP_SIDE))), *map_range(plane, _MAP_SIDE))


def _url(pixels: NDArray[np.uint8]) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_picture(pixels)).decode('ascii')}"
