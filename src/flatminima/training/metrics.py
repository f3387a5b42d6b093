"""The names of what runs are scored by and what is measured of them."""

from __future__ import annotations

from flatminima.training.tasks import TASKS, Regression
from flatminima.training.tasks.shots import GROUPS

PARTS = ("test", "validation")

OF_CURVATURE = (
    "train_loss",
    "hessian_trace",
    "top_eigenvalue",
    "perturbation_gap",
    "gap_over_prediction",
)
OF_COST = ("gradients", "gradients_per_step", "seconds_per_step", "peak_bytes")
BY_NOVELTY = ("accuracy", "accuracy_base", "accuracy_novel", "accuracy_harmonic")
"""What is scored where some classes were not trained on."""

ACROSS_DOMAINS = ("worst_domain", "worst_domain_loss")


def metric_names() -> list[str]:
    """All that runs have in their results, of any task, or log at the ends of epochs."""
    scores = [metric for task in TASKS.values() for metric in getattr(task, "metrics", ())]
    scores += [*Regression().metrics, *BY_NOVELTY]
    scores += [f"{metric}_{group}" for metric in ("mae", "gmean") for group in GROUPS]
    tested = [f"{part}_{score}" for part in PARTS for score in scores]
    return list(dict.fromkeys([*tested, *OF_CURVATURE, *OF_COST, *ACROSS_DOMAINS]))
