"""Which settings of a run may change on its way, so that population based training may perturb them."""

import difflib
from collections.abc import Iterable

from index.base.errors import ConfigError

CHANGEABLE = {
    "training.lr": "read at each step",
    "training.lr_gamma": "read at each step",
    "training.momentum": "passed to the optimizer when the run resumes; its state is kept",
    "training.weight_decay": "passed to the optimizer when the run resumes; its state is kept",
    "training.clip_norm": "read at each step",
    "method.temperature": "of the loss",
    "method.margin": "of the loss",
    "method.memory": "share of the old prototype at each update; the prototypes are kept",
    "method.min_responsibility": "of the loss",
    "method.scatter_weight": "of the loss",
    "method.label_smoothing": "of the loss",
    "method.mixup": "drawn for each batch",
    "method.cutmix": "drawn for each batch",
    "data.rotation": "drawn for each image",
    "data.erasing": "drawn for each image",
    "data.randaugment_magnitude": "drawn for each image",
    "data.brightness": "drawn for each image",
    "data.contrast": "drawn for each image",
    "data.saturation": "drawn for each image",
}
"""key → where a new value takes effect. None of them is part of the network, of the optimizer's state, of a neighbour
table or of the split, so a checkpoint that was written under one value can be resumed under another."""


def check_changeable(keys: Iterable[str]) -> None:
    """Raise ConfigError for the first key that must not change during a run."""
    for key in keys:
        if key not in CHANGEABLE:
            near = difflib.get_close_matches(key, CHANGEABLE, n=1, cutoff=0.8)
            part = [name for name in CHANGEABLE if name.split(".")[0] == key.split(".")[0]]
            raise ConfigError(
                f"space.{key} may not change while a run trains, and scheduler.kind=pbt changes every key of "
                f"space; it can change {', '.join(near or part or CHANGEABLE)} (scheduler.kind=asha accepts any key)"
            )
