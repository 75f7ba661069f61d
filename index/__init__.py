"""Neighbour search: vectors, ids and labels in; ids and distances out.

Building is `index.writing.build.build` (the name `index.writing.build` is the module), in stages `index.writing.job.run`. FAISS is imported on first use of a
search, so that settings, errors and storage cost nothing.
"""

import importlib
from typing import TYPE_CHECKING

from index.base.errors import (
    ConfigError,
    FslDistError,
    PartialSearchError,
    RequestError,
    StaleOwnerError,
    StorageError,
    VersionError,
)
from index.openblas import name_processor

if TYPE_CHECKING:
    from index.actors.client import RayIndex, open_ray_index
    from index.base.files import Owner
    from index.config import IndexConfig
    from index.following import FollowingIndex
    from index.search import LocalIndex, Neighbours, SearchResult, ShardedIndex, open_index
    from index.writing.build import Staging
    from index.writing.writer import IndexWriter

name_processor()

_ROOM_OF = {
    "FollowingIndex": "index.following",
    "IndexConfig": "index.config",
    "IndexWriter": "index.writing.writer",
    "LocalIndex": "index.search",
    "Neighbours": "index.search",
    "Owner": "index.base.files",
    "RayIndex": "index.actors.client",
    "SearchResult": "index.search",
    "ShardedIndex": "index.search",
    "Staging": "index.writing.build",
    "open_index": "index.search",
    "open_ray_index": "index.actors.client",
}

__all__ = [
    "ConfigError",
    "FollowingIndex",
    "FslDistError",
    "IndexConfig",
    "IndexWriter",
    "LocalIndex",
    "Neighbours",
    "Owner",
    "PartialSearchError",
    "RayIndex",
    "RequestError",
    "SearchResult",
    "ShardedIndex",
    "Staging",
    "StaleOwnerError",
    "StorageError",
    "VersionError",
    "open_index",
    "open_ray_index",
]


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'index' has no attribute '{name}'")
    return getattr(importlib.import_module(_ROOM_OF[name]), name)
