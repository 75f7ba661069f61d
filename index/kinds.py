"""Kinds of index: what FAISS is told when one is built. Here is flat alone, which needs no FAISS index on disk."""

from typing import Any

import numpy as np

from index.config import IndexConfig


def needs_files(config: IndexConfig) -> bool:
    """Whether every shard has a FAISS index beside its vectors."""
    return config.kind != "flat"


def is_trained(kind: str) -> bool:
    """Whether all shards share something trained on a sample."""
    return kind != "flat"


def factory_of(config: IndexConfig, dim: int, num_vectors: int) -> str:
    """FAISS's description of the index of `num_vectors` vectors of `dim` numbers."""
    return "Flat"


def check(config: IndexConfig, dim: int, num_vectors: int) -> None:
    """Refuse settings that `num_vectors` vectors of `dim` numbers cannot have (ConfigError)."""


def parameters_of(config: IndexConfig, dim: int, num_vectors: int) -> dict[str, int]:
    """What a search takes where it is told nothing else."""
    return {}


def sample_size(config: IndexConfig, dim: int, num_vectors: int) -> int:
    """How many vectors to draw for `train`."""
    return 0


def train(sample: np.ndarray, num_vectors: int, config: IndexConfig) -> bytes:
    """What all shards share: an empty FAISS index trained on `sample`, float32 [n, dim], out of `num_vectors`."""
    return b""


def fill(trained: bytes, vectors: np.ndarray, config: IndexConfig) -> Any:
    """A shard's FAISS index: what `train` gave, filled with float32 [rows, dim]; an id is a row of the shard."""
    raise AssertionError("flat needs no FAISS index")
