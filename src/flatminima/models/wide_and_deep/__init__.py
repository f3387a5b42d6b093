"""What infinitely wide networks become as they get deeper, as classifiers."""

from flatminima.models.wide_and_deep.activations import (
    DualActivation,
    Limit,
    limiting_classifier,
    optimal_activation,
)
from flatminima.models.wide_and_deep.classifiers import (
    DeepKernelClassifier,
    HilbertKernelClassifier,
)
from flatminima.models.wide_and_deep.kernels import sufficient_depth

__all__ = [
    "DeepKernelClassifier",
    "DualActivation",
    "HilbertKernelClassifier",
    "Limit",
    "limiting_classifier",
    "optimal_activation",
    "sufficient_depth",
]
