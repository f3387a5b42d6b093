"""The method that a recipe means: its optimizer, its options, and settings of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch.optim import Optimizer

from flatminima.errors import InputError, unknown
from flatminima.perturb import Perturbed, card, make, options, refused, schedules
from flatminima.training.recipe import Recipe, parse_method
from flatminima.training.second_order import check_second_order
from flatminima.training.specs import OptimizerSpec, TuneSpec

OF_PYTHON = ("schedule", "scaler", "model")
"""Options whose values have no form in a recipe."""

SHARED_OPTIONS = {"num_perturbations": 1, "clean_weight": 0.0, "noise": "normal"}
"""Fields of a recipe that only some methods have, with their defaults."""

SETTINGS = (
    *(f.name for f in fields(OptimizerSpec)),
    "augment",
    "objective",
    "reparam",
    "epochs",
    "micro_batch_size",
    "keep",
    "average_from",
    "swa_lr",
    "ema_decay",
    "input_noise",
    *(f.name for f in fields(TuneSpec)),
)
"""Fields of a recipe that one method of a comparison may have for itself: `plain:keep=swa`."""


def specialize(recipe: Recipe) -> Recipe:
    """The recipe with the settings that follow its method's name moved to where they belong.

    `nso:sigma=0.1:lr=0.01` is the method `nso:sigma=0.1` in a recipe whose lr is 0.01.
    """
    name, own = parse_method(recipe.perturb.perturb)
    settings = {k: v for k, v in own.items() if k in SETTINGS and k not in options(name)}
    rest = [f"{k}={_word(v)}" for k, v in own.items() if k not in settings]
    return recipe.but(perturb=":".join([name, *rest]), **settings)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def perturbed(base: Optimizer, recipe: Recipe) -> Perturbed:
    """The recipe's method around a base optimizer.

    Raises:
        InputError: the recipe sets an option that the method does not have.
    """
    check_second_order(recipe)
    spec = recipe.perturb
    name, own = parse_method(spec.perturb)
    strength = card(name).strength
    takes = [option for option in options(name) if option not in OF_PYTHON]
    for option in own:
        if option not in takes and option not in refused(name):
            raise unknown(f"option of {name!r}", option, [*takes, *SETTINGS])
    given: dict[str, Any] = {}
    for option, default in SHARED_OPTIONS.items():
        value = getattr(spec, option)
        if option in takes:
            given[option] = value
        elif value != default:
            raise InputError(f"{name!r} has no option --{option.replace('_', '-')}: leave it out")
    if strength:
        given |= {"seed": recipe.loop.seed}
        if hasattr(spec, strength):
            given[strength] = getattr(spec, strength)
    return make(name, base, **{**given, **own})


def check_strengths(said: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse a sigma or rho that none of the methods would use.

    Args:
        said: What the user set, by the recipe's names.
        methods: As users write them.

    Raises:
        InputError: there is one.
    """
    used = {card(parse_method(method)[0]).strength for method in methods}
    for name in ("sigma", "rho"):
        if said.get(name) is not None and name not in used:
            own = [m for m in methods if name in options(parse_method(m)[0])]
            if own:
                raise InputError(f"--{name} sets no strength here: write {own[0]}:{name}=...")
            raise InputError(
                f"--{name} is not what {', '.join(methods)} is set by: choose a method with "
                f"--perturb (see `flatminima methods`), or leave --{name} out"
            )


def tuned_strength(method: str) -> str:
    """The name of what a sweep of this method sets: sigma or rho.

    Args:
        method: As users write it, without its strength.

    Raises:
        InputError: it is not one method, has no strength, or sets it already.
    """
    if "," in method or not method.strip():
        raise InputError(f"--perturb is {method!r}: name one method to tune, such as nso")
    name, own = parse_method(method)
    strength = card(name).strength
    if not strength:
        raise InputError(f"{name!r} has nothing to tune: choose a method of sigma or rho")
    if strength in own:
        raise InputError(f"{method!r} sets {strength}, which is to be tuned: leave it out")
    return strength


def strength_schedule(
    optimizer: Perturbed, recipe: Recipe, total: int, per_epoch: int
) -> schedules.Schedule:
    """The recipe's schedule of sigma or rho, for a run of `total` steps."""
    kind = recipe.perturb.strength_schedule
    if kind == "linear":
        return schedules.linear(total, every=per_epoch)
    if kind == "exponential":
        # From 1e-5, as the code released with the NSO paper does.
        size = max(group[optimizer.strength_name] for group in optimizer.param_groups)
        return schedules.exponential(total, every=per_epoch, start=1e-5 / max(size, 1e-5))
    return schedules.constant()
