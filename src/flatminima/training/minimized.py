"""Which objective a recipe means, and whether the data are for it."""

from __future__ import annotations

import numpy as np

from flatminima.errors import InputError
from flatminima.objectives import (
    AcrossDomains,
    BackwardCorrection,
    ConR,
    Contrastive,
    CutMix,
    Objective,
    Supervised,
    make_objective,
    objective_card,
    objective_cards,
)
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.domains import NAME_DOMAINS as NAMES
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet
from flatminima.training.recipe import Recipe
from flatminima.training.tasks import TASKS, task_of

MIXES = "mixes the numbers of two inputs"

KINDS = {
    "mixup": (("image", "vector"), MIXES),
    "cutmix": (("image",), MIXES),
    "conr": (("image", "vector"), "changes the numbers of inputs at random"),
}
"""The kinds of data that some objectives are for, and why."""


def objective(recipe: Recipe, data: DataSet) -> Objective:
    """What the recipe minimizes.

    Raises:
        InputError: no such objective, options that it does not have, or data that it is not for.
    """
    name, given = parse_brackets(recipe.objective.objective or task_of(data).objective)
    found = make_objective(name, **given)
    check_task(name, data.task, data.name)
    instead = "squared-error" if data.task == "regression" else "label-smoothing"
    check_kind(name, data.kind, data.name, instead)
    one_function = isinstance(found, Supervised) and type(found).__call__ is Supervised.__call__
    if recipe.optimizer.optimizer == "gns" and not one_function:
        raise InputError(
            f"--optimizer gns takes its curvature through the outputs, and --objective {name} is "
            "not one criterion of them: take cross-entropy or squared-error"
        )
    _check_compared(recipe, data)
    if isinstance(found, BackwardCorrection):
        found.inverse(data.outputs)  # refuses what labels of so many classes cannot be
    if isinstance(found, AcrossDomains):
        _check_domains(name, found, data)
    if isinstance(found, ConR):
        # Its window is in the unit of the labels, which the model sees standardized.
        found = found.standardized(data.scale.deviation)
    return found


def check_gathering(minimized: Objective, recipe: Recipe, processes: int) -> None:
    """Refuse what would have processes wait for each other for ever.

    Raises:
        InputError: micro-batches with an objective that gathers samples from several processes.
    """
    gathers = isinstance(minimized, Contrastive) and minimized.gather
    if gathers and processes > 1 and recipe.loop.micro_batch_size is not None:
        raise InputError(
            "the contrastive loss gathers the samples of all processes at each forward pass, and "
            "with --micro-batch-size one may have more of these than another: leave it out, or say "
            "--objective 'contrastive(gather=false)'"
        )


def check_task(name: str, task: str, source: str) -> None:
    """Refuse an objective that is not for data of a task.

    Raises:
        InputError: it is not.
    """
    tasks = objective_card(name).tasks
    if task not in tasks and name != parse_brackets(TASKS[task].objective)[0]:
        fitting = [card.name for card in objective_cards() if task in card.tasks]
        fitting = fitting or [TASKS[task].objective]
        raise InputError(
            f"--objective {name} is a loss of {' or '.join(tasks)}, and "
            f"{source} is a task of {task}: take {' or '.join(fitting)}"
        )


def check_kind(name: str, kind: str, source: str, instead: str = "label-smoothing") -> None:
    """Refuse an objective that is not for data of a kind.

    Raises:
        InputError: it is not.
    """
    kinds, why = KINDS.get(objective_card(name).name, ((kind,), ""))
    if kind not in kinds:
        raise InputError(
            f"--objective {name} {why}, and {source} holds {kind}s: take another, such as {instead}"
        )


def check_encoding(minimized: Objective, encoding: Encoding) -> None:
    """Refuse an objective that needs places in images for a model that is given vectors.

    Raises:
        InputError: so it is.
    """
    if isinstance(minimized, CutMix) and encoding.flatten:
        raise InputError(
            "--objective cutmix cuts rectangles out of images, and this model is given them as "
            "vectors: say --model cnn, or take mixup"
        )


def _check_compared(recipe: Recipe, data: DataSet) -> None:
    """Refuse to hold predictions against those of the frozen model where they are no classes."""
    name, given = parse_brackets(recipe.reparam.reparam)
    if name == "r-amt" and given.get("strength", 1) and data.task == "regression":
        raise InputError(
            f"--reparam r-amt compares predictions as probabilities of classes, and {data.name} is "
            "a task of regression: say --reparam 'r-amt(strength=0)', which compares nothing"
        )


def _check_domains(name: str, asked: AcrossDomains, data: DataSet) -> None:
    """Refuse to compare domains where there are none, or one alone."""
    domains = data.train.domains
    if domains is None:
        raise InputError(f"--objective {name} compares domains, and {data.name} has none: {NAMES}")
    if asked.penalizes and len(present := np.unique(domains)) < 2:
        raise InputError(
            f"--objective {name} compares domains, and the training examples of {data.name} are of "
            f"the single domain {data.domains[present[0]]!r}: give data of more, or take erm"
        )
