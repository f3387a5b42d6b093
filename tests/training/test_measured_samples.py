"""On which samples, in which batches, a run's curvature is measured."""

from dataclasses import replace

import numpy as np
import torch

from flatminima.training.curvature import measure, measured_batches
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe

CPU = torch.device("cpu")


def prepared(*, by_class=False, **changes):
    made = prepare(Recipe.from_flat({"pretrain": False, "seed": 3, **changes}))
    if not by_class:
        return made
    order = np.argsort(made.data.train.targets, kind="stable")
    return replace(made, data=replace(made.data, train=made.data.train.take(order)))


def test_batches_of_data_in_order_of_class_have_several_classes_each():
    batches = measured_batches(prepared(by_class=True), CPU)
    assert min(len(b["targets"].unique()) for b in batches if len(b["targets"]) > 20) > 4


def test_the_error_of_the_data_is_that_of_samples_drawn_at_random():
    # By classes in order it would be many times that of the same samples, shuffled before.
    settings = {"sigma": None, "probes": 20, "eigenvalues": 1}
    found = []
    for by_class in (True, False):
        known = prepared(by_class=by_class)
        found.append(measure(known, known.built.model, CPU, **settings))
    ordered, shuffled = found
    assert ordered.trace.data_stderr < 2 * shuffled.trace.data_stderr


def test_all_samples_are_measured_once_and_the_choice_is_the_seeds():
    known = prepared(measure_samples=50)
    first, again = measured_batches(known, CPU), measured_batches(known, CPU, 7)
    inputs = [torch.cat([batch["inputs"] for batch in batches]) for batches in (first, again)]
    assert torch.equal(*inputs)
    assert len(inputs[0].unique(dim=0)) == 50
    whole = prepared()
    targets = torch.cat([batch["targets"] for batch in measured_batches(whole, CPU)])
    assert sorted(targets.tolist()) == sorted(whole.data.train.targets.tolist())
