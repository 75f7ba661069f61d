"""Settings of a head."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings

Kind = Literal["softmax", "knn", "prototypes", "logistic", "lmnn"]

_READ_BY: dict[str, tuple[str, ...]] = {
    "softmax": ("tau",),
    "knn": ("metric", "k_p"),
    "prototypes": ("is_centred",),
    "logistic": ("c", "is_balanced"),
    "lmnn": ("k_p", "pca"),
}
"""the settings of each kind; all kinds have temperatures"""


@settings("head")
class HeadConfig:
    """What turns embeddings into class probabilities."""

    kind: Kind = "knn"
    """softmax: the network's own classifier; knn: a vote of the nearest training images; prototypes: the nearest
    class mean; logistic: logistic regression on embeddings; lmnn: a vote in a space that LMNN learns"""
    metric: Literal["cosine", "l2"] = "cosine"
    """knn: how embeddings are compared"""
    k_p: Annotated[int, Field(ge=1)] = 5
    """knn, lmnn: nearest training images that vote"""
    tau: Annotated[float, Field(ge=0.0, le=4.0)] = 0.0
    """softmax: share of the log prior that is subtracted from the logits (Menon et al. 2021, Eq. 9);
    0 leaves them as they are"""
    is_centred: bool = False
    """prototypes: subtract the mean of the training embeddings first (SimpleShot's CL2N)"""
    c: Annotated[float, Field(gt=0.0)] = 1.0
    """logistic: inverse strength of the L2 penalty, as in scikit-learn; embeddings are standardised"""
    is_balanced: bool = False
    """logistic: weigh images by N / (C · n_c), so that all classes weigh the same"""
    pca: Annotated[int, Field(ge=1)] = 64
    """lmnn: number of principal components in which the map is fitted, at most as many as exist"""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """divides the head's class scores before the softmax; calibrated on validation images"""
    novel_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """divides the scores of class means where classes are added without training; calibrated on validation images"""

    def __post_init__(self) -> None:
        used = (*_READ_BY[self.kind], "kind", "temperature", "novel_temperature")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in used and value != field.default:
                owners = [kind for kind, names in _READ_BY.items() if field.name in names]
                raise ConfigError(
                    f"head.{field.name}={value} is a setting of head.kind={' or '.join(owners)}; head.kind is "
                    f"{self.kind} (leave it out, or choose that kind)"
                )

    @property
    def name(self) -> str:
        """A short name for tables: `knn cosine k_p=5`, `softmax tau=1`, `logistic c=0.1 balanced`."""
        words: list[str] = [self.kind]
        for name in _READ_BY[self.kind]:
            value = getattr(self, name)
            if isinstance(value, bool):
                words += [name.removeprefix("is_")] if value else []
            elif name == "metric":
                words.append(value)
            elif name != "pca":
                words.append(f"{name}={value:g}")
        return " ".join(words)
