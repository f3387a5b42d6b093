"""Training that tunes itself: a few training steps, then a step of the knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective, Supervised
from flatminima.perturb import Perturbed
from flatminima.perturb.ranks import world_size
from flatminima.perturb.shares import sample_count
from flatminima.tuning.self_tuning.gating import response_of, set_home
from flatminima.tuning.self_tuning.knobs import Knobs
from flatminima.tuning.self_tuning.result import SelfTuned

KnobObjective: TypeAlias = Callable[[nn.Module, Batch, Mapping[str, Tensor]], Tensor]
"""`(model, batch, values) -> training loss`, a scalar; values as of `Knobs.values`."""

TRAINING, VALIDATION = 0, 1


class SelfTuning:
    r"""A Self-Tuning Network in training.

    With weights $w_\phi(u)$ that are affine in the knobs (`gate`), the two steps are

    - training: $\phi$ along $-\nabla_\phi L_T(w_\phi(u), r(u))$, u drawn around $\lambda$ for each
      sample, with which this sample is regularized and which its gates are given;
    - validation: $\lambda$ and s along $-\nabla [L_V(w_\phi(u)) - \tau \mathrm{Ent}(\varsigma)]$,
      dropout and regularizers off.

    So the training loss is never differentiated in the knobs, which need not be differentiable: the
    hypergradient flows through the gates alone. Adam moves the knobs. Where the optimizer is one of
    `flatminima`'s and a shared knob has the name of its strength, sigma or rho, that knob sets it.

    `state_dict` holds all that this adds to a run. With those of model and optimizer, resuming
    equals never having stopped, bit for bit on one machine, where the model itself draws nothing.
    With several processes, all take the mean of their hypergradients, so their knobs stay equal.

    Cost: a gated pass is about two ordinary ones; each validation step adds one batch forward and
    backward.

    Source: MacKay, Vicol, Lorraine, Duvenaud, Grosse, Self-Tuning Networks, ICLR 2019, arXiv
    1903.03088.

    Args:
        model: Made by `gate(model, len(knobs))`.
        knobs: What is tuned.
        optimizer: Of the model's parameters, made after the gates.
        objective: The training loss, which uses the knobs' values.
        validation: Batches of samples that are not trained on, taken in turn.
        validation_objective: Default: the cross-entropy.
        lr: Of Adam, for positions and scales.
        entropy: $\tau$, which keeps the scales from collapsing.
        tune_scales: False leaves the scales as they are; validation is then at $u = \lambda$.
        train_steps: Training steps before validation steps.
        valid_steps: Validation steps after them.
        warmup: Training steps before the first validation step.

    Raises:
        InputError: no validation batch, a model without gates or with gates for other knobs, a
            number out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        knobs: Knobs,
        optimizer: Optimizer,
        objective: KnobObjective,
        validation: Sequence[Batch],
        *,
        validation_objective: Objective | None = None,
        lr: float = 3e-3,
        entropy: float = 1e-3,
        tune_scales: bool = True,
        train_steps: int = 2,
        valid_steps: int = 1,
        warmup: int = 0,
    ) -> None:
        _check(validation, lr, entropy, train_steps, valid_steps, warmup)
        self.model, self.knobs, self.optimizer = model, knobs, optimizer
        self.objective, self.validation = objective, validation
        self.validation_objective = validation_objective or Supervised()
        self.entropy, self.tune_scales = entropy, tune_scales
        self.train_steps, self.valid_steps, self.warmup = train_steps, valid_steps, warmup
        self.steps = self.validations = 0
        """Training and validation steps so far."""
        self.history: list[dict[str, Any]] = []
        """After each round of validation steps: step, values, scales and validation loss."""
        self._response = response_of(model)
        self._strength = _strength(optimizer, knobs)
        moved = [knobs.position, knobs.raw_scale] if tune_scales else [knobs.position]
        self._adam = torch.optim.Adam(moved, lr=lr)
        set_home(model, knobs.position)

    def step(self, batch: Batch) -> float:
        """A training step on a batch and, where they are due, the validation steps after it.

        Returns:
            The training loss, at drawn knobs and the mean over the optimizer's passes.
        """
        loss = self.train_step(batch)
        if self.due:
            for _ in range(self.valid_steps):
                self.valid_step(self.validation[self.validations % len(self.validation)])
        return loss

    @property
    def due(self) -> bool:
        """Whether validation steps follow the last training step."""
        return self.steps > self.warmup and not self.steps % self.train_steps

    def train_step(self, batch: Batch) -> float:
        """Move the weights only."""
        self.model.train()
        self.before_step()
        self.optimizer.zero_grad()
        total = 0.0
        if isinstance(self.optimizer, Perturbed):
            for piece in self.optimizer.passes(batch):
                running = self.optimizer.current_pass
                loss = self.training_loss(self.model, piece)
                if loss.requires_grad and running is not None and running.backward:
                    loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item() * (1.0 if running is None else running.weight)
        else:
            loss = self.training_loss(self.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return total

    def before_step(self) -> None:
        """Give the optimizer its strength for the next step, where that is a knob.

        Groups of strength 0 stay unperturbed.
        """
        if self._strength:
            value = self.knobs.values(self._draw(1))[self._strength].item()
            for group in self.optimizer.param_groups:
                if group[self._strength]:
                    group[self._strength] = value

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss at drawn knobs; the same draws until the next step."""
        u = self._draw(sample_count(batch))
        with self._response.to(u):
            return self.objective(model, batch, self.knobs.values(u))

    def _draw(self, rows: int) -> Tensor:
        with torch.no_grad():
            return self.knobs.draw(rows, TRAINING, self.steps, rank=_rank())

    def set_lr(self, lr: float) -> None:
        """Move the knobs with another learning rate from now on."""
        for group in self._adam.param_groups:
            group["lr"] = lr

    def valid_step(self, batch: Batch) -> float:
        """Move the knobs only.

        Returns:
            The validation loss before.

        Raises:
            InputError: a hypergradient is not finite; the knobs are left where they are.
        """
        knobs = self.knobs
        if self.tune_scales:
            u = knobs.draw(sample_count(batch), VALIDATION, self.validations, rank=_rank())
        else:
            u = knobs.position[None]
        with evaluated(self.model), self._response.to(u):
            loss = self.validation_objective(self.model, batch)
        wanted = loss - self.entropy * knobs.entropy() if self.tune_scales else loss
        moved = self._adam.param_groups[0]["params"]
        gradients = torch.autograd.grad(wanted, moved)
        _average(gradients)
        for gradient in gradients:
            self._check_finite(gradient, loss)
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.grad = gradient
        self._adam.step()
        self._adam.zero_grad()
        set_home(self.model, knobs.position)
        self.validations += 1
        self.history.append(
            {
                "step": self.steps,
                "values": knobs.current(),
                "scales": knobs.scale.tolist(),
                "validation_loss": loss.item(),
            }
        )
        return loss.item()

    def _check_finite(self, gradient: Tensor, loss: Tensor) -> None:
        if gradient.isfinite().all():
            return
        names = [n for n, g in zip(self.knobs.knobs, gradient, strict=True) if not g.isfinite()]
        raise InputError(
            f"after {self.steps} training steps the hypergradient of {', '.join(names)} is not "
            f"finite (validation loss {loss.item():g}): lower the learning rates of weights and "
            "knobs, or give the knobs narrower bounds"
        )

    def result(self) -> SelfTuned:
        """Where the knobs stand, and their way there."""
        return SelfTuned(self.knobs.current(), self.steps, self.validations, tuple(self.history))

    def state_dict(self) -> dict[str, Any]:
        """All but the state of model and optimizer."""
        return {
            "knobs": self.knobs.state_dict(),
            "adam": self._adam.state_dict(),
            "steps": self.steps,
            "validations": self.validations,
            "history": [dict(entry) for entry in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the tuner of that state stood.

        Raises:
            InputError: the state is of other knobs.
        """
        self.knobs.load_state_dict(state["knobs"])
        self._adam.load_state_dict(state["adam"])
        self.steps, self.validations = state["steps"], state["validations"]
        self.history = [dict(entry) for entry in state["history"]]
        set_home(self.model, self.knobs.position)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, and each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _rank() -> int:
    return torch.distributed.get_rank() if world_size() > 1 else 0


def _average(gradients: Sequence[Tensor]) -> None:
    if world_size() > 1:
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
            gradient /= world_size()


def _strength(optimizer: Optimizer, knobs: Knobs) -> str:
    """The knob that is the strength of the optimizer, "" if there is none."""
    name = optimizer.strength_name if isinstance(optimizer, Perturbed) else ""
    if name not in knobs.knobs:
        return ""
    if not knobs.knobs[name].shared:
        raise InputError(
            f"the knob {name} moves the weights, which all samples share: give it shared=True"
        )
    return name


def _check(validation: Any, lr: float, entropy: float, train: int, valid: int, warmup: int) -> None:
    if not hasattr(validation, "__getitem__") or isinstance(validation, Mapping | Tensor):
        raise InputError(
            f"validation is a {type(validation).__name__}: give a list of batches, such as "
            "list(loader), so that any of them can be found again"
        )
    if not len(validation):
        raise InputError(
            "there is no validation batch: knobs are tuned on samples that are not trained on"
        )
    for name, value, least in (
        ("train_steps", train, 1),
        ("valid_steps", valid, 1),
        ("warmup", warmup, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")
    if not 0 < lr < float("inf"):
        raise InputError(f"lr is {lr!r}: give a finite number above 0")
    if not 0 <= entropy < float("inf"):
        raise InputError(f"entropy is {entropy!r}: give a finite number, 0 or above")
