"""Neighbour search: vectors, ids and labels in; ids and distances out.

Build an index with `index.writing.build.build` from arrays in memory, or with `index.writing.job.run` in resumable
stages. FAISS is loaded at the first search, so importing settings, errors and storage is quick.
"""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from index.actors.client import RayIndex as RayIndex
    from index.actors.client import open_ray_index as open_ray_index
    from index.base.errors import ConfigError as ConfigError
    from index.base.errors import FslDistError as FslDistError
    from index.base.errors import PartialSearchError as PartialSearchError
    from index.base.errors import RequestError as RequestError
    from index.base.errors import StaleOwnerError as StaleOwnerError
    from index.base.errors import StorageError as StorageError
    from index.base.errors import VersionError as VersionError
    from index.base.files import Owner as Owner
    from index.config import IndexConfig as IndexConfig
    from index.following import FollowingIndex as FollowingIndex
    from index.results import Neighbours as Neighbours
    from index.results import SearchResult as SearchResult
    from index.search import LocalIndex as LocalIndex
    from index.search import ShardedIndex as ShardedIndex
    from index.search import open_index as open_index
    from index.writing.build import Staging as Staging
    from index.writing.writer import IndexWriter as IndexWriter

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
