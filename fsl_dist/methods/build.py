"""The method a configuration names."""

import torch

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.selection import Selection
from fsl_dist.methods.batch_hard import BatchHard
from fsl_dist.methods.chai import CHAI
from fsl_dist.methods.config import (
    BatchHardConfig,
    CHAIConfig,
    CrossEntropyConfig,
    DeepKNNConfig,
    FewShotNCAConfig,
    PCNConfig,
    ScatterConfig,
)
from fsl_dist.methods.cross_entropy import CrossEntropy
from fsl_dist.methods.deep_knn import BatchMining, DatasetMining
from fsl_dist.methods.few_shot_nca import FewShotNCA
from fsl_dist.methods.method import Method
from fsl_dist.methods.pcn import PCN
from fsl_dist.methods.scatter import Scatter


def build_method(
    config: RunConfig, catalogue: Catalogue, selection: Selection, device: torch.device
) -> Method:
    """Build `method.kind` over the training selection; raises RequestError when the data cannot serve it."""
    match config.method:
        case PCNConfig() as method:
            return PCN(config, method, selection, list(catalogue.class_names), device)
        case ScatterConfig() as method:
            return Scatter(config, method, selection, list(catalogue.class_names))
        case DeepKNNConfig() as method if config.mining.source == "dataset":
            return DatasetMining(config, method, selection, catalogue.labels)
        case DeepKNNConfig() as method:
            return BatchMining(config, method, selection, catalogue.labels)
        case BatchHardConfig() as method:
            return BatchHard(config, method, selection, catalogue.labels)
        case FewShotNCAConfig() as method:
            return FewShotNCA(config, method, selection, catalogue.labels)
        case CrossEntropyConfig() as method:
            return CrossEntropy(config, method, selection, catalogue.labels, device)
        case CHAIConfig() as method:
            return CHAI(config, method, catalogue, selection)
        case method:
            return method.build(config, catalogue, selection, device)
