"""What is minimized: callables `(model, batch) -> loss`, one file per loss, target or penalty."""

from flatminima.objectives.backward_correction import BackwardCorrection
from flatminima.objectives.conr import ConR, ConRLoss
from flatminima.objectives.contrastive import Contrastive
from flatminima.objectives.cross_entropy import CrossEntropy, LabelSmoothing
from flatminima.objectives.dual_t import DualT
from flatminima.objectives.elr import ELR, ELRLoss
from flatminima.objectives.elr_plus import ELRPlus
from flatminima.objectives.features import Features, features_of
from flatminima.objectives.given import Loss, OwnLoss, as_objective
from flatminima.objectives.language_model import LanguageModel
from flatminima.objectives.mixing import CutMix, Mixup
from flatminima.objectives.penalties import GradientNorm, TracePenalty
from flatminima.objectives.ps_kd import PSKD, PSKDLoss
from flatminima.objectives.registry import make_objective, objective_card, objective_cards
from flatminima.objectives.regression import AbsoluteError, LinearLoss, SquaredError
from flatminima.objectives.remembering import Remembering, Setting, sample_index
from flatminima.objectives.supervised import Batch, Objective, Supervised

__all__ = [
    "ELR",
    "PSKD",
    "AbsoluteError",
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
    "GradientNorm",
    "LabelSmoothing",
    "LanguageModel",
    "LinearLoss",
    "Loss",
    "Mixup",
    "Objective",
    "OwnLoss",
    "PSKDLoss",
    "Remembering",
    "Setting",
    "SquaredError",
    "Supervised",
    "TracePenalty",
    "as_objective",
    "features_of",
    "make_objective",
    "objective_card",
    "objective_cards",
    "sample_index",
]
