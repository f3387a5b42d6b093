"""Architectures and estimators that methods of the field bring with them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flatminima.errors import require
from flatminima.models.cards import CARDS
from flatminima.models.learned_proximal import (
    LPN,
    ConvLPN,
    Fitted,
    LearnedProximal,
    LinearMap,
    PatchLPN,
    Prior,
    ProximalMatching,
    Restored,
    Stage,
    fit_lpn,
    pnp_admm,
    pnp_hqs,
    pnp_pgd,
    proximal_schedule,
)

if TYPE_CHECKING:
    from flatminima.models.block_coordinate import GreedyLinearRegressor, GreedyLogisticClassifier
    from flatminima.models.boosted_networks import (
        BoostedNetworkClassifier,
        BoostedNetworkRegressor,
    )
    from flatminima.models.hard_patches import MaskedViT
    from flatminima.models.label_propagation import GreedyLabelPropagation
    from flatminima.models.wide_and_deep import (
        DeepKernelClassifier,
        DualActivation,
        HilbertKernelClassifier,
        limiting_classifier,
        optimal_activation,
    )

__all__ = [
    "CARDS",
    "LPN",
    "BoostedNetworkClassifier",
    "BoostedNetworkRegressor",
    "ConvLPN",
    "DeepKernelClassifier",
    "DualActivation",
    "Fitted",
    "GreedyLabelPropagation",
    "GreedyLinearRegressor",
    "GreedyLogisticClassifier",
    "HilbertKernelClassifier",
    "LearnedProximal",
    "LinearMap",
    "MaskedViT",
    "PatchLPN",
    "Prior",
    "ProximalMatching",
    "Restored",
    "Stage",
    "fit_lpn",
    "limiting_classifier",
    "optimal_activation",
    "pnp_admm",
    "pnp_hqs",
    "pnp_pgd",
    "proximal_schedule",
]

_ESTIMATORS = {
    "BoostedNetworkClassifier": "flatminima.models.boosted_networks",
    "BoostedNetworkRegressor": "flatminima.models.boosted_networks",
    "DeepKernelClassifier": "flatminima.models.wide_and_deep",
    "DualActivation": "flatminima.models.wide_and_deep",
    "GreedyLabelPropagation": "flatminima.models.label_propagation",
    "GreedyLinearRegressor": "flatminima.models.block_coordinate",
    "GreedyLogisticClassifier": "flatminima.models.block_coordinate",
    "HilbertKernelClassifier": "flatminima.models.wide_and_deep",
    "limiting_classifier": "flatminima.models.wide_and_deep",
    "optimal_activation": "flatminima.models.wide_and_deep",
}
"""Where the estimators live, which need scikit-learn."""


def __getattr__(name: str) -> Any:
    # Late: scikit-learn is an extra, and slow to import.
    if name == "MaskedViT":
        return importlib.import_module("flatminima.models.hard_patches").MaskedViT
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("sklearn", "estimators")
    return getattr(importlib.import_module(_ESTIMATORS[name]), name)
