"""Architectures and estimators that methods of the field bring with them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flatminima.errors import require
from flatminima.models.cards import CARDS

if TYPE_CHECKING:
    from flatminima.models.block_coordinate import GreedyLinearRegressor, GreedyLogisticClassifier
    from flatminima.models.boosted_networks import (
        BoostedNetworkClassifier,
        BoostedNetworkRegressor,
    )
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
    "BoostedNetworkClassifier",
    "BoostedNetworkRegressor",
    "DeepKernelClassifier",
    "DualActivation",
    "GreedyLabelPropagation",
    "GreedyLinearRegressor",
    "GreedyLogisticClassifier",
    "HilbertKernelClassifier",
    "limiting_classifier",
    "optimal_activation",
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
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("sklearn", "estimators")
    return getattr(importlib.import_module(_ESTIMATORS[name]), name)
