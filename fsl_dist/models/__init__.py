"""Networks: backbones, embeddings, and batch norm that does not depend on the number of workers."""

from typing import TYPE_CHECKING

from index.base.lazy import export

if TYPE_CHECKING:
    from fsl_dist.models.backbones import build_network as build_network
    from fsl_dist.models.config import BackboneConfig as BackboneConfig
    from fsl_dist.models.embedding import Network as Network

__getattr__, __dir__, __all__ = export(__name__, __file__)
