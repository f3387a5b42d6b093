"""One hidden layer grown by gradient boosting."""

from flatminima.models.boosted_networks.estimators import (
    BoostedNetworkClassifier,
    BoostedNetworkRegressor,
)

__all__ = ["BoostedNetworkClassifier", "BoostedNetworkRegressor"]
