"""The read path of a data set: catalogue, byte-range reads, decoding and prefetching."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.data.catalogue import Catalogue as Catalogue
    from fsl_dist.data.config import DataConfig as DataConfig
    from fsl_dist.data.loader import FeatureSource as FeatureSource
    from fsl_dist.data.loader import ImageSource as ImageSource
    from fsl_dist.data.loader import Loader as Loader
    from fsl_dist.data.loader import Request as Request
    from fsl_dist.data.loader import open_source as open_source
    from fsl_dist.data.selection import Selection as Selection
    from fsl_dist.data.split import holdout as holdout

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
