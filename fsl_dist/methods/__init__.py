"""Training methods, one file each: settings, traits, batches, loss and what the method keeps."""

from fsl_dist.methods.method import Batch, BatchLoss, Method, MethodContext, MethodSettings, Traits
from fsl_dist.methods.stratified import StratifiedBatches
from index.base.settings import settings

__all__ = [
    "Batch",
    "BatchLoss",
    "Method",
    "MethodContext",
    "MethodSettings",
    "StratifiedBatches",
    "Traits",
    "settings",
]
