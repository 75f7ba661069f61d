"""Heads: what turns embeddings into class probabilities, fitted, scored, calibrated and chosen on validation images."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.heads.added_classes import AddedClass as AddedClass
    from fsl_dist.heads.calibrating import calibrate as calibrate
    from fsl_dist.heads.choosing import Choice as Choice
    from fsl_dist.heads.choosing import candidate_heads as candidate_heads
    from fsl_dist.heads.choosing import choose as choose
    from fsl_dist.heads.choosing import score_heads as score_heads
    from fsl_dist.heads.config import HeadConfig as HeadConfig
    from fsl_dist.heads.fitting import Embedded as Embedded
    from fsl_dist.heads.fitting import Head as Head
    from fsl_dist.heads.fitting import fit_head as fit_head
    from fsl_dist.heads.head_file import read_head as read_head
    from fsl_dist.heads.head_file import write_head as write_head
    from fsl_dist.heads.joining import BaseMeans as BaseMeans
    from fsl_dist.heads.joining import calibrate_novel as calibrate_novel
    from fsl_dist.heads.joining import join_novel as join_novel
    from fsl_dist.heads.scoring import Comparison as Comparison
    from fsl_dist.heads.scoring import HeadScore as HeadScore
    from fsl_dist.heads.scoring import compare as compare
    from fsl_dist.heads.scoring import score_head as score_head

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
