"""RUN/head.json: the head that a run predicts with."""

import json
import math
from pathlib import Path

from fsl_dist.errors import ConfigError, VersionError
from fsl_dist.heads.config import HeadConfig
from index.base.checksums import encode_json, read_json
from index.base.files import exists, write_atomic
from index.base.settings import dump, validate

HEAD_FILE = "head.json"
"""in a run's folder"""

_MAX_BYTES = 1 << 16
_WAY_OUT = "remove it to predict without a head, or choose the head again"


def write_head(run: Path, config: HeadConfig) -> None:
    """Write a run's head into its folder, with its checksum, in one step."""
    write_atomic(run / HEAD_FILE, encode_json(dump(config)))


def read_head(run: Path) -> HeadConfig | None:
    """A run's head; None where its folder has no head.json.

    Raises ConfigError for a file that is damaged, or names a setting that is unknown or breaks a rule.
    """
    path = run / HEAD_FILE
    if not exists(path):
        return None
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has {len(data)} bytes")
        json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error} ({_WAY_OUT})") from None
    try:
        found = read_json(path, root=run)
    except VersionError as error:
        raise ConfigError(f"{error} ({_WAY_OUT})") from None
    return validate(HeadConfig, found, str(path))


def _refuse_constant(text: str) -> float:
    raise ValueError(
        f"{text} is not a number ({math.nan} is not allowed in it)"
        if text == "NaN"
        else f"{text} is not a number"
    )
