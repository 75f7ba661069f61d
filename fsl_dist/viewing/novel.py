"""Novel classes of one session: a name and the embeddings of a few images, in memory."""

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.names.readings import read_text
from fsl_dist.errors import RequestError
from fsl_dist.viewing.run_view import RunView

_MOST_CLASSES, _MOST_IMAGES = 100, 100


class NovelClasses:
    """Classes that a run learns from a few images without training, until the process ends."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._vectors: dict[str, NDArray[np.float32]] = {}

    @property
    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """The embeddings of each class's images by its name, float32 [n, dim]."""
        return self._vectors

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each class."""
        return {name: len(vectors) for name, vectors in self._vectors.items()}

    def add(self, name: str, image: bytes) -> None:
        """Add an image to a class.

        Raises RequestError for an unusable image, a name of the run's own classes, and above 100 classes of 100
        images.
        """
        name = read_text(name).strip()
        if not name:
            raise RequestError("name is empty; a class needs a name")
        if name in self._view.answerer.known_names:
            raise RequestError(f"class '{name}' is known to the run; a novel class needs another name")
        if name not in self._vectors and len(self._vectors) >= _MOST_CLASSES:
            raise RequestError(f"there are already {_MOST_CLASSES} novel classes; remove one first")
        of_class = self._vectors.get(name)
        if of_class is not None and len(of_class) >= _MOST_IMAGES:
            raise RequestError(f"class '{name}' already has {_MOST_IMAGES} images; remove the class first")
        vector = self._view.embed([image])
        joined = vector if of_class is None else np.concatenate([of_class, vector])
        # A new mapping: an answer that is being computed keeps the old one.
        self._vectors = {**self._vectors, name: joined}

    def remove(self, name: str) -> None:
        """Forget a class; RequestError if there is none of that name."""
        if name not in self._vectors:
            raise RequestError(
                f"class '{name}' is not among the novel classes: {', '.join(self._vectors) or 'none'}"
            )
        self._vectors = {known: vectors for known, vectors in self._vectors.items() if known != name}
