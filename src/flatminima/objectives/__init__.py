"""What is minimized: callables `(model, batch) -> loss`, one file per loss, target or penalty."""

from flatminima.objectives.aligning import HessianAlignment, HutchinsonAlignment
from flatminima.objectives.backward_correction import BackwardCorrection
from flatminima.objectives.conr import ConR, ConRLoss
from flatminima.objectives.contrastive import Contrastive
from flatminima.objectives.cross_entropy import CrossEntropy, LabelSmoothing
from flatminima.objectives.domains import AcrossDomains, sample_domains
from flatminima.objectives.dual_t import DualT
from flatminima.objectives.elr import ELR, ELRLoss
from flatminima.objectives.elr_plus import ELRPlus
from flatminima.objectives.features import Features, features_of
from flatminima.objectives.given import Loss, OwnLoss, as_objective
from flatminima.objectives.hard_patches import (
    HardPatchesMining,
    HardPatchMasker,
    PatchOutput,
    relative_loss,
)
from flatminima.objectives.hessian_alignment import hessian_alignment, linear_head_alignment
from flatminima.objectives.invariance import CORAL, ERM, IRM, Fishr, VREx
from flatminima.objectives.language_model import LanguageModel
from flatminima.objectives.mixing import CutMix, Mixup
from flatminima.objectives.penalties import GradientNorm, TracePenalty
from flatminima.objectives.ps_kd import PSKD, PSKDLoss
from flatminima.objectives.registry import make_objective, objective_card, objective_cards
from flatminima.objectives.regression import AbsoluteError, LinearLoss, SquaredError
from flatminima.objectives.remembering import Remembering, Setting, sample_index
from flatminima.objectives.supervised import Batch, Objective, Supervised

__all__ = [
    "CORAL",
    "ELR",
    "ERM",
    "IRM",
    "PSKD",
    "AbsoluteError",
    "AcrossDomains",
    "BackwardCorrection",
    "Batch",
    "ConR",
    "ConRLoss",
    "Contrastive",
    "CrossEntropy",
    "CutMix",
    "DualT",
    "ELRLoss",
    "ELRPlus",
    "Features",
    "Fishr",
    "GradientNorm",
    "HardPatchMasker",
    "HardPatchesMining",
    "HessianAlignment",
    "HutchinsonAlignment",
    "LabelSmoothing",
    "LanguageModel",
    "LinearLoss",
    "Loss",
    "Mixup",
    "Objective",
    "OwnLoss",
    "PSKDLoss",
    "PatchOutput",
    "Remembering",
    "Setting",
    "SquaredError",
    "Supervised",
    "TracePenalty",
    "VREx",
    "as_objective",
    "features_of",
    "hessian_alignment",
    "linear_head_alignment",
    "make_objective",
    "objective_card",
    "objective_cards",
    "relative_loss",
    "sample_domains",
    "sample_index",
]
