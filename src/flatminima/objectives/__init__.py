"""What is minimized: callables `(model, batch) -> loss`, one file per loss, target or penalty."""

from flatminima.objectives.given import Loss, OwnLoss, as_objective
from flatminima.objectives.supervised import Batch, Objective, Supervised

__all__ = ["Batch", "Loss", "Objective", "OwnLoss", "Supervised", "as_objective"]
