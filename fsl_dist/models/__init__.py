"""Networks: backbones, embeddings, and batch norm that does not depend on the number of workers."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.models.backbones import build_network as build_network
    from fsl_dist.models.config import BackboneConfig as BackboneConfig
    from fsl_dist.models.embedding import Network as Network

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
