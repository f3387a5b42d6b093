"""A run that tunes itself: its gated model, its loss at drawn knobs, and the knobs' own steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective
from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.perturb import Perturbed
from flatminima.reparam import Reparam
from flatminima.training.batches import Epoch, batches_per_epoch
from flatminima.training.data.device import to_device
from flatminima.training.input_noise import with_noise
from flatminima.training.loader import loader
from flatminima.training.recipe import Recipe
from flatminima.tuning import Knobs, SelfTuning, bake, gate
from flatminima.tuning.self_tuning import Gated, gated_layers

RESPONSE = ("response_weight", "response_bias", "slopes")
"""The parameters that only answer to knobs: neither noise nor weight decay is for them."""


class SelfTunedWeights(Reparam):
    """W + diag(V u) W' in each linear and convolution layer; baked at the knobs that were found.

    Args:
        model: Changed in place.
        knobs: How many.
        seed: Of the first responses.
    """

    changes_modules: ClassVar[bool] = True

    def __init__(self, model: nn.Module, knobs: int, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if gate(model, knobs) is not model:
                raise InputError("the model is a single layer: gates need a module around it")
        super().__init__(model)

    def bake(self, model: nn.Module) -> None:
        """Make it an ordinary model."""
        bake(model)


class AtDrawnKnobs:
    """The training loss with the regularizers that are tuned.

    Args:
        objective: Without them.
        model: Gated, its weights as training begins.
        names: Of the knobs.
    """

    def __init__(self, objective: Objective, model: nn.Module, names: Mapping[str, Any]) -> None:
        self.objective, self.names = objective, names
        self._layers = list(gated_layers(model).values())
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        self._others = [
            p for p in model.parameters() if id(p) not in inside and p.requires_grad and p.dim() > 1
        ]
        self._start = (
            [w.detach().clone() for w in self._matrices()] if "distance_penalty" in names else []
        )

    def __call__(self, model: nn.Module, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """A scalar; weight decay is 1/2 w sum |W|^2, as that of torch's SGD."""
        if "input_noise" in values:
            batch = with_noise(batch, values["input_noise"])
        if "label_smoothing" in values:
            loss = _smoothed(model, batch, values["label_smoothing"])
        else:
            loss = self.objective(model, batch)
        if "weight_decay" in values:
            squares = [w.square().sum() for w in self._matrices()]
            loss = loss + values["weight_decay"] / 2 * torch.stack(squares).sum()
        if "distance_penalty" in values:
            pairs = zip(self._matrices(), self._start, strict=True)
            moved = [(w - start.to(w.device)).square().sum() for w, start in pairs]
            loss = loss + values["distance_penalty"] * torch.stack(moved).sum()
        return loss

    def _matrices(self) -> list[Tensor]:
        """The weights at the first sample's draw.

        Shared knobs are drawn alike for all samples; of others beside them one draw stands for all,
        whose mean is that over the samples.
        """
        return [*(self._at(layer) for layer in self._layers), *self._others]

    @staticmethod
    def _at(layer: Gated) -> Tensor:
        return layer.at(layer.response.u)[0]


def _smoothed(model: nn.Module, batch: Batch, alpha: Tensor) -> Tensor:
    inputs, targets = inputs_and_targets(batch)
    log_p = log_softmax(logits(model, inputs), dim=1)
    own = -log_p.gather(1, targets[:, None])[:, 0]
    return ((1 - alpha) * own - alpha * log_p.mean(1)).mean()


class SelfTunedRun:
    """The tuner of a run, with the validation batches that it takes.

    Args:
        accelerator: Of the run.
        model: Gated.
        optimizer: Of the model.
        knobs: What is tuned.
        objective: The training loss without the tuned regularizers.
        loss: What is validated.
        validation: Encoded.
        recipe: Defaults filled in.
        total: The steps of the run.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        optimizer: Perturbed,
        knobs: Knobs,
        objective: Objective,
        loss: Objective,
        validation: Any,
        recipe: Recipe,
        total: int,
    ) -> None:
        spec = recipe.tune
        self._accelerator, self._validation = accelerator, validation
        self._optimizer, self._spec, self._loop = optimizer, spec, recipe.loop
        self._rate = max(recipe.optimizer.lr or 0.0, 1e-30)
        world = accelerator.num_processes
        self._size = min(recipe.loop.batch_size, len(validation))
        self._per_round = batches_per_epoch(len(validation), self._size, world)
        if not self._per_round:
            raise InputError(f"{len(validation)} validation samples are too few for the processes")
        self.tuner = SelfTuning(
            model,
            knobs,
            optimizer,
            AtDrawnKnobs(objective, model, knobs.knobs),
            [None],
            validation_objective=loss,
            lr=spec.tune_lr,
            entropy=spec.tune_entropy,
            train_steps=spec.tune_every,
            warmup=int(spec.tune_warmup * total),
        )

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss at the draws of this step."""
        return self.tuner.training_loss(model, batch)

    def before_step(self) -> None:
        """Draw the strength."""
        self.tuner.before_step()

    def after_step(self) -> dict[str, float]:
        """The validation step, where it is due; what the knobs are then, else {}."""
        self.tuner.steps += 1
        if not self.tuner.due:
            return {}
        # Knobs rest when the weights do: a response that is no longer trained is none.
        factor = self._optimizer.param_groups[0]["lr"] / self._rate
        self.tuner.set_lr(self._spec.tune_lr * factor)
        with self._accelerator.autocast():
            self.tuner.valid_step(self._batch(self.tuner.validations))
        self.tuner.history.clear()
        return self.tuner.knobs.current()

    def _batch(self, number: int) -> Any:
        rounds, done = divmod(number, self._per_round)
        order = Epoch(
            len(self._validation),
            self._size,
            seed=self._loop.seed,
            epoch=rounds,
            start=done,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
        )
        order.batches = order.batches[:1]
        (batch,) = loader(self._validation, batch_sampler=order)
        return to_device(batch, self._accelerator.device)

    def stand_where(self, model: nn.Module) -> None:
        """Put the knobs where the gates of a loaded checkpoint say that they stood."""
        layer = next(iter(gated_layers(model).values()))
        with torch.no_grad():
            self.tuner.knobs.position.copy_(layer.home)

    def found(self) -> dict[str, Any]:
        """What is kept of it in the results."""
        return {
            "tuner": "stn",
            "values": self.tuner.knobs.current(),
            "scales": self.tuner.knobs.scale.tolist(),
            "validation_steps": self.tuner.validations,
        }


def check_self_tuned(recipe: Recipe) -> None:
    """Refuse what a self-tuning run cannot do.

    Raises:
        InputError: so it is.
    """
    reasons = {
        "--reparam": (recipe.reparam.reparam != "none", "gates change the layers themselves"),
        f"--keep {recipe.loop.keep}": (
            recipe.loop.keep in ("swa", "ema"),
            "weights that answered to different knobs have no mean that answers",
        ),
        "--precision fp16": (recipe.loop.precision == "fp16", "hypergradients would underflow"),
        "--measure-every": (
            recipe.measure.measure_every is not None,
            "along the run the model has gates, whose curvature means nothing",
        ),
        "--optimizer variational-adam": (
            recipe.optimizer.optimizer == "variational-adam",
            "its posterior is of weights that do not answer to anything",
        ),
        "--live-trace": (recipe.loop.live_trace, "each step has knobs of its own"),
        "--strength-schedule": (
            recipe.perturb.strength_schedule != "constant" and _moves_strength(recipe),
            "sigma and rho have one source: the knob",
        ),
    }
    for words, (is_so, reason) in reasons.items():
        if is_so:
            raise InputError(f"--tuner stn cannot go with {words}: {reason}; leave one out")


def _moves_strength(recipe: Recipe) -> bool:
    return any(name in (recipe.tune.tune or "") for name in ("sigma", "rho"))
