"""Classes that a run learns from a few images without training."""

from collections.abc import Sequence
from pathlib import Path

from fsl_dist.data.names.readings import read_text
from fsl_dist.errors import DataError, RequestError
from fsl_dist.heads.added_classes import AddedClass, add_class
from fsl_dist.image_files import ImageFiles, ImageLike, name_images
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun


def add_from_images(trained: TrainedRun, name: str, images: Sequence[ImageLike]) -> AddedClass:
    """Embed the images of a class and store the embeddings in the run's folder.

    Raises RequestError for an empty or existing name, for an empty list of images, and for a run on feature vectors;
    DataError for an unreadable image. After an error nothing was added.
    """
    config = trained.config
    if config.data.features:
        raise RequestError(
            f"{trained.run} was trained on data.features={config.data.features}; add_class needs images"
        )
    called, asked = read_text(name), name_images(images)
    if not called.strip():
        raise RequestError(f"name={name!r} is empty; a class needs a name")
    if not asked:
        raise RequestError(f"class '{called}' needs at least one image")
    if called in class_names_of(trained):
        raise RequestError(
            f"class '{called}' is one that {trained.run} was trained on; a class to add must be new"
        )
    with ImageFiles(trained.embedder, config, trained.catalogue) as files:
        vectors, _ = files.embed(asked)
        for failed in files.failed:
            raise DataError(
                f"{failed.image} {failed.reason}; class '{called}' was not added (leave the image out)"
            )
    added = AddedClass(called, vectors, tuple(image.name for image in asked), trained.parameters)
    add_class(Path(trained.run), added)
    return added


def class_names_of(trained: TrainedRun) -> list[str]:
    """The classes that a run was trained on, in the order of their labels."""
    labels = split_run(trained.catalogue, trained.config).gallery.labels
    return [trained.catalogue.class_names[label] for label in labels.tolist()]
