"""Runs whose optimizer takes its gradients itself: gradient-normalized smoothness on each batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatminima.errors import InputError
from flatminima.measure import GaussNewton, Shift
from flatminima.measure.operators import Operator
from flatminima.objectives import Batch, Supervised
from flatminima.optim import GNS
from flatminima.perturb import global_norm
from flatminima.perturb.ranks import world_size
from flatminima.perturb.shares import sample_count
from flatminima.training.recipe import Recipe, parse_method
from flatminima.training.state import Run, State
from flatminima.tuning.self_tuning.tuner import evaluated

GRADIENTS_OF_A_PRODUCT = 2
"""About what a product with the Gauss-Newton matrix takes."""


class BatchGNS(GNS):
    """`GNS` with the Gauss-Newton matrix of the batch at hand.

    Its groups have an lr of 1, the whole step, for those who ask every optimizer for one.

    Args:
        model: Whose free parameters it moves.
        weight_decay: w of a penalty w / 2 |W|^2 of all but biases and norms.
    """

    def __init__(self, model: nn.Module, weight_decay: float = 0.0) -> None:
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        free = [(name, p) for name, p in bare.named_parameters() if p.requires_grad]
        self._bare, self._objective, self._batch = bare, Supervised(), None
        self._decay = weight_decay
        several = world_size() > 1
        super().__init__([{"params": free, "lr": 1.0}], self._matrix, data_parallel=several)

    def meet(self, objective: Supervised, batch: Batch) -> None:
        """Take the curvature of this batch from now on."""
        self._objective, self._batch = objective, batch

    def penalty(self) -> Tensor | float:
        """w / 2 |W|^2."""
        if not self._decay:
            return 0.0
        squares = [p.square().sum() for p in self.param_groups[0]["params"] if p.dim() > 1]
        return self._decay / 2 * torch.stack(squares).sum()

    def _matrix(self) -> Operator:
        found = GaussNewton(
            self._bare, self._objective, [self._batch], data_parallel=self.data_parallel
        )
        if not self._decay:
            return found
        free = self.param_groups[0]["params"]
        return Shift(found, torch.cat([p.new_full((p.numel(),), self._at(p)) for p in free]))

    def _at(self, parameter: Tensor) -> float:
        return self._decay if parameter.dim() > 1 else 0.0


def second_order_step(
    run: Run, state: State, total: int, batch: Any
) -> tuple[Tensor, Tensor, bool]:
    """A step of `BatchGNS`, in evaluation mode, so that its function stays the same meanwhile.

    Args:
        run: Of such an optimizer.
        state: Its gradients are counted up; a product counts as two.
        total: Samples in the batches of all processes together.
        batch: Of this process.

    Returns:
        Loss and gradient norm before the step, and whether both were finite, so that it was taken.
    """
    base = run.optimizer.base
    assert isinstance(base, BatchGNS)
    assert isinstance(run.objective, Supervised)
    base.meet(run.objective, batch)
    share = sample_count(batch) * run.accelerator.num_processes / total
    before: list[Any] = []

    def closure() -> Any:
        run.optimizer.zero_grad()
        with evaluated(run.model):
            loss = run.objective(run.model, batch) * share + base.penalty()
        run.accelerator.backward(loss)
        if not before:
            before.append(loss.detach())
            before.append(global_norm([p.grad for p in run.parameters if p.grad is not None]))
        return loss.detach()

    with torch.no_grad():
        decayed = base.penalty()
    try:
        # Logged without the penalty, as of other optimizers.
        before[0] = run.optimizer.step(closure) - decayed
    except InputError:
        # At the first call nothing has moved; later ones are trials, which may be anything.
        if all(bool(torch.isfinite(number)) for number in before):
            raise
        return before[0], before[1], False
    assert base.last is not None
    state.gradients += base.last.gradients + GRADIENTS_OF_A_PRODUCT * base.last.products
    return before[0], before[1], True


def account(run: Run) -> dict[str, Any]:
    """What is logged of the last step."""
    last = run.optimizer.base.last if isinstance(run.optimizer.base, BatchGNS) else None
    if last is None:
        return {}
    names = ("status", "gamma", "damping", "trials", "products")
    return {"gns": {name: getattr(last, name) for name in names}}


def check_second_order(recipe: Recipe) -> None:
    """Refuse what does not go with an optimizer that takes its gradients itself.

    Raises:
        InputError: so it is.
    """
    if recipe.optimizer.optimizer != "gns":
        return
    reasons = {
        f"--perturb {recipe.perturb.perturb}": (
            parse_method(recipe.perturb.perturb)[0] not in ("plain", "none"),
            "its steps are tried at one function, without noise or ascent",
        ),
        "--lr": (recipe.optimizer.lr not in (None, 1.0), "it searches for its step's length"),
        "--max-grad-norm": (
            recipe.optimizer.max_grad_norm is not None,
            "a clipped gradient is not that of the loss it tries to lower",
        ),
        "--reparam": (recipe.reparam.reparam != "none", "its curvature is of ordinary weights"),
        "--input-noise": (
            recipe.objective.input_noise > 0,
            "the loss must be the same at each call within a step",
        ),
        f"--precision {recipe.loop.precision}": (
            recipe.loop.precision != "fp32",
            "its products and its search need float32",
        ),
        "--micro-batch-size": (
            recipe.loop.micro_batch_size is not None,
            "loss and curvature are of a whole batch",
        ),
        "--equal gradients": (
            recipe.loop.equal == "gradients",
            "what its search takes is not known beforehand",
        ),
        "--tuner stn": (
            bool(recipe.tune.tune) and recipe.tune.tuner == "stn",
            "each step has knobs of its own",
        ),
    }
    for words, (is_so, reason) in reasons.items():
        if is_so:
            raise InputError(f"--optimizer gns cannot go with {words}: {reason}; leave one out")
