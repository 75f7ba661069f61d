"""Training methods, one file each: settings, traits, batches, loss and state."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.methods.method import Batch as Batch
    from fsl_dist.methods.method import BatchLoss as BatchLoss
    from fsl_dist.methods.method import Method as Method
    from fsl_dist.methods.method import MethodContext as MethodContext
    from fsl_dist.methods.method import MethodSettings as MethodSettings
    from fsl_dist.methods.method import Traits as Traits
    from fsl_dist.methods.stratified import StratifiedBatches as StratifiedBatches
    from index.base.settings import settings as settings

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
