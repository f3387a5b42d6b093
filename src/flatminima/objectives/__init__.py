"""What is minimized: callables `(model, batch) -> loss`, one file per loss, target or penalty."""

from flatminima.objectives.supervised import Batch, Objective, Supervised

__all__ = ["Batch", "Objective", "Supervised"]
