import sys

import pytest

from flatminima.errors import InputError
from flatminima.perturb import (
    NSO,
    SAM,
    Card,
    Pass,
    Perturbed,
    Weights,
    card,
    cards,
    make,
    options,
    register,
)
from flatminima.perturb.plain import Plain

from . import test_common
from .cases import Variant, adamw, sgd, smooth


def test_cards_have_distinct_names_and_say_what_they_cost():
    names = [c.name for c in cards()]
    assert {"plain", "nso", "nso-one-pass", "wp-sgd", "sam"} <= set(names)
    assert len(set(names)) == len(names)
    for c in cards():
        assert c.title
        assert c.equation
        assert c.gradients
        assert c.slot == "perturb"
        assert c.suggested or not c.strength


@pytest.mark.parametrize("name", [c.name for c in cards()])
def test_aliases_and_presets_name_the_same_method(name):
    assert all(card(alias) is card(name) for alias in card(name).aliases)
    assert not set(options(name)) & set(card(name).preset or {})


def test_make_applies_the_preset():
    assert make("nso-split", sgd(smooth().parameters()), sigma=0.1).signs == "split"
    assert make("wp", sgd(smooth().parameters()), sigma=0.1).two_point is False
    assert isinstance(make("sam", sgd(smooth().parameters()), rho=0.1), SAM)
    assert isinstance(make("none", sgd(smooth().parameters())), Plain)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("nos", {}, "unknown method 'nos': did you mean 'nso'"),
        ("nso", {}, "'nso' needs sigma; start with sigma 0.008"),
        ("sam", {"sigma": 0.1}, "unknown option of 'sam' 'sigma'"),
        ("nso", {"sigma": 0.1, "num_perturbation": 2}, "did you mean 'num_perturbations'"),
        ("nso-one-pass", {"sigma": 0.1, "signs": "paired"}, "unknown option"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(name, given, message):
    with pytest.raises(InputError, match=message):
        make(name, sgd(smooth().parameters()), **given)


class Shift(Perturbed):
    """The gradient at W + s, all weights moved alike: as short as a method can be."""

    card = Card(
        name="test-shift",
        title="Shift",
        equation="g(W + s)",
        gradients="1",
        buffers="1",
        strength="shift",
        suggested="shift 0.01",
        source="these tests",
    )
    strength_name = "shift"

    def __init__(self, base, *, shift):
        super().__init__(base, strength=shift)

    def plan(self, turn):
        return [Pass(move=_shift)]


def _shift(weights: Weights):
    weights.displace(slot.tensor.new_full((), slot.strength) for slot in weights.slots)


@pytest.fixture
def shift(monkeypatch):
    """The method above, registered for the length of a test."""
    methods = sys.modules["flatminima.perturb.cards"]
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    register()(Shift)
    return Variant("test-shift")


COMMON = [
    test_common.test_learning_rate_0_leaves_the_weights_bit_identical,
    test_common.test_strength_0_is_the_base_optimizer_bit_for_bit,
    test_common.test_saved_and_loaded_into_a_fresh_optimizer_goes_on_as_if_never_stopped,
    test_common.test_closure_and_iterator_are_bit_identical,
]


@pytest.mark.parametrize("test", COMMON, ids=lambda test: test.__name__)
@pytest.mark.parametrize("base", [sgd, adamw])
def test_a_short_class_passes_the_common_suite(shift, test, base):
    assert card("test-shift") in cards()
    test(shift, base)


def test_a_short_class_restores_and_accumulates(shift):
    test_common.test_a_step_broken_off_leaves_no_trace(shift, test_common._break_after_backward, 0)
    test_common.test_micro_batches_inside_the_passes_equal_the_large_batch(shift)
    test_common.test_frozen_unused_tied_and_sparse_parameters(shift, "passes")


def test_methods_are_optimizers_of_their_class():
    assert isinstance(make("nsm", sgd(smooth().parameters()), sigma=0.1), NSO)
