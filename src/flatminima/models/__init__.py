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
    from flatminima.models.label_propagation import GreedyLabelPropagation

__all__ = [
    "CARDS",
    "LPN",
    "ConvLPN",
    "Fitted",
    "GreedyLabelPropagation",
    "GreedyLinearRegressor",
    "GreedyLogisticClassifier",
    "LearnedProximal",
    "LinearMap",
    "PatchLPN",
    "Prior",
    "ProximalMatching",
    "Restored",
    "Stage",
    "fit_lpn",
    "pnp_admm",
    "pnp_hqs",
    "pnp_pgd",
    "proximal_schedule",
]

_ESTIMATORS = {
    "GreedyLabelPropagation": "flatminima.models.label_propagation",
    "GreedyLinearRegressor": "flatminima.models.block_coordinate",
    "GreedyLogisticClassifier": "flatminima.models.block_coordinate",
}


def __getattr__(name: str) -> Any:
    # Late: scikit-learn is an extra, and slow to import.
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("sklearn", "estimators")
    return getattr(importlib.import_module(_ESTIMATORS[name]), name)
