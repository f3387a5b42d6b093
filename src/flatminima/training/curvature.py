"""The curvature of a run's loss on its training set: at the end, and along the way."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Subset

from flatminima.measure import CurvatureReport, curvature
from flatminima.progress import Progress, silent
from flatminima.training.data.device import to_device
from flatminima.training.data.encode import encode
from flatminima.training.loader import loader
from flatminima.training.prepared import Prepared
from flatminima.training.state import Run
from flatminima.training.threads import fitting_threads


def measure(
    prepared: Prepared,
    model: torch.nn.Module,
    device: torch.device,
    progress: Progress = silent,
    **settings: Any,
) -> CurvatureReport:
    """The curvature of a model's loss on a recipe's training set, as trained on.

    Args:
        prepared: Its recipe says how, its data on what.
        model: The weights in question.
        device: Where to compute.
        progress: Told how far each stage is.
        settings: Of `curvature`, over the recipe's.
    """
    spec = prepared.recipe.measure
    of_recipe = {
        "sigma": spec.measure_sigma or None,
        "probes": spec.probes,
        "draws": spec.draws,
        "seed": prepared.recipe.loop.seed,
        "keep_interrupted": False,
    }
    with fitting_threads(model):
        return curvature(
            model.to(device),
            prepared.task.loss,
            measured_batches(prepared, device),
            progress=progress,
            **{**of_recipe, **settings},
        )


def measured_batches(
    prepared: Prepared, device: torch.device, batch_size: int | None = None
) -> list[Any]:
    """The training samples that measures are taken on, chosen by the recipe's seed.

    Args:
        prepared: Its recipe says how many, its data which.
        device: Where to have them.
        batch_size: Samples of a batch. Default: as the recipe trains.
    """
    spec, loop_spec = prepared.recipe.measure, prepared.recipe.loop
    encoded = encode(prepared.data.train, prepared.data, prepared.built.encoding)
    samples = min(len(encoded), spec.measure_samples or len(encoded))
    chosen = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(loop_spec.seed))
    size = batch_size or loop_spec.batch_size
    # In the order drawn: batches of one class each would vary more than samples of the source do.
    part = Subset(encoded, chosen[:samples].tolist())
    return [to_device(batch, device) for batch in loader(part, size)]


def headline(report: CurvatureReport) -> dict[str, float]:
    """The numbers of a curvature report that a comparison is about."""
    assert report.top_eigenvalue is not None
    numbers = {
        "train_loss": report.loss,
        "hessian_trace": report.trace.value,
        "top_eigenvalue": report.top_eigenvalue.value,
    }
    if report.perturbation_gap is not None:
        numbers["perturbation_gap"] = report.perturbation_gap.value
        predicted = report.predicted_gap
        if predicted is not None and predicted.value > 0:
            numbers["gap_over_prediction"] = report.perturbation_gap.value / predicted.value
    return numbers


def look(prepared: Prepared, run: Run, epoch: int) -> dict[str, float]:
    """What is measured along a run where its recipe says `measure_every`: numbers to be logged.

    Nothing of the run is changed, the random state included.

    Args:
        prepared: The run's recipe and data.
        run: In the first process of several; in the others nothing is measured.
        epoch: How many have ended.
    """
    every = prepared.recipe.measure.measure_every
    if every is None or epoch % every or not run.accelerator.is_main_process:
        return {}
    model, device = run.accelerator.unwrap_model(run.model), run.accelerator.device
    numbers = headline(measure(prepared, model, device))
    if len(prepared.data.test):
        encoded = encode(prepared.data.test, prepared.data, prepared.built.encoding)
        batches = loader(encoded, prepared.recipe.loop.batch_size)
        score = prepared.task.score(model, batches, device)
        numbers |= {f"test_{metric}": value for metric, value in score.items()}
    return numbers
