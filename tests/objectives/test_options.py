"""Options of objectives and reparametrizations: numbers are finite, switches true or false."""

import inspect
import math

import numpy as np
import pytest
from torch import nn

from flatminima.arguments import above, below, between, finite, truth, whole
from flatminima.errors import InputError
from flatminima.objectives import ConRLoss, ELRLoss, ELRPlus, PSKDLoss
from flatminima.objectives.registry import registered as objectives
from flatminima.reparam.registry import registered as reparams

NEEDED = {
    "backward-correction": {"noise": 0.3},
    "gradient-norm": {"weight": 0.1},
    "trace-penalty": {"weight": 0.1},
    "dual-t": {"start": 1},
    "conr": {"window": 1.0},
    "distance-penalty": {"weight": 0.1},
    "distance-constraint": {"radius": 0.1},
    "lora": {"rank": 2},
}
NO_NUMBERS = (math.nan, math.inf, -math.inf, True, "much", None, [1.0])


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def makers():
    """What has options, how it is made of them, and what it cannot be made without."""
    found = {name: (cls, cls, NEEDED.get(name, {})) for name, (_, cls) in objectives().items()}
    for name, (_, cls) in reparams().items():
        found[name] = (cls, lambda cls=cls, **given: cls(network(), **given), NEEDED.get(name, {}))
    found["ConRLoss"] = (ConRLoss, ConRLoss, {"window": 1.0})
    for cls in (ELRLoss, PSKDLoss):
        found[cls.__name__] = (cls, cls, {"num_examples": 3, "num_classes": 2})
    nets = {"first": nn.Linear(2, 2), "second": nn.Linear(2, 2), **found["ELRLoss"][2]}
    return {**found, "ELRPlus": (ELRPlus, ELRPlus, nets)}


def options(*kinds):
    """Each option of some types, as (maker, what else is needed, its name, whether it may be None).

    A hint of a type, since annotations are not evaluated.
    """
    cases = []
    for name, (cls, make, needed) in makers().items():
        if cls.__init__ is object.__init__:
            continue
        for option, parameter in inspect.signature(cls).parameters.items():
            kind, _, rest = parameter.annotation.partition(" | ")
            if kind in kinds:
                case = pytest.param(make, needed, option, rest == "None", id=f"{name}-{option}")
                cases.append(case)
    return cases


@pytest.mark.parametrize(("make", "needed", "option", "optional"), options("float", "int"))
def test_what_is_no_finite_number_is_refused_by_name(make, needed, option, optional):
    for value in NO_NUMBERS:
        if value is None and optional:
            continue
        with pytest.raises(InputError, match=rf"{option} is .*: give a "):
            make(**{**needed, option: value})


@pytest.mark.parametrize(("make", "needed", "option", "optional"), options("bool"))
def test_words_and_numbers_are_no_truth_values(make, needed, option, optional):
    assert not optional
    for value in ("no", 0, 1.0, None):
        with pytest.raises(InputError, match=rf"{option} is .*: give true or false"):
            make(**{**needed, option: value})


def test_there_are_options_to_look_at():
    assert len(options("float", "int")) > 60
    assert len(options("bool")) > 15


def test_bounds_are_where_they_are_said_to_be():
    assert between("x", 0, 0, 1) == 0
    assert between("x", 1, 0, 1) == 1
    assert above("x", 1e-300) == 1e-300
    assert below("x", 0, 0, 1) == 0
    assert finite("x", -3) == -3
    assert whole("x", 0, 0) == 0
    assert truth("x", False) is False
    for check in (
        lambda: between("x", -1e-9, 0, 1),
        lambda: between("x", 1 + 1e-9, 0, 1),
        lambda: above("x", 0),
        lambda: below("x", 1, 0, 1),
        lambda: whole("x", 0),
        lambda: whole("x", 1.0),
    ):
        with pytest.raises(InputError, match="x is "):
            check()


def test_numbers_of_numpy_are_numbers():
    for found in (between("x", np.float32(0.5), 0), whole("x", np.int64(3))):
        assert type(found) in (float, int)
    with pytest.raises(InputError, match="finite number 0 or above"):
        between("x", np.float32(np.nan), 0)
