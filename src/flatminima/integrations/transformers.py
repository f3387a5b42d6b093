"""The transformers `Trainer`, whose training step runs the passes of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.perturb import Perturbed, make, options
from flatminima.perturb.shares import fraction, sample_count

USE = """class NSOTrainer(PerturbedTrainerMixin, Trainer): ...

    trainer = NSOTrainer(..., perturb="nso", perturb_options={"sigma": 0.01})"""

FUSED = ("lomo", "adalomo")
"""Optimizers of `TrainingArguments.optim` that step within backward."""


class PerturbedTrainerMixin:
    """Makes a transformers `Trainer` train with a method of this library.

        class NSOTrainer(PerturbedTrainerMixin, Trainer): ...

        trainer = NSOTrainer(model=model, args=args, train_dataset=data, perturb="nso",
                             perturb_options={"sigma": 0.01})

    The optimizer that `TrainingArguments` ask for becomes the base optimizer, and each micro-batch
    runs through its passes; methods that want halves of a batch get those of each micro-batch. All
    else is the Trainer's: mixed precision, accumulation, clipping (of the step's gradient),
    schedules, checkpoints, resuming. The loss it logs is the one at W where a pass runs there, else
    the weighted mean of the passes'.

    Losses that the model divides by `num_items_in_batch`, as causal language models do, are cut
    right too: a part gets its share of that number. Under DistributedDataParallel a step needs one
    all-reduce (two where the method says so), also with accumulation; methods that change a pass's
    gradient before it counts (GSAM, LookSAM) reduce those of each micro-batch.

    Cost: the passes of the method. The Trainer's training step always runs a backward pass, so the
    extra pass of `running_statistics="clean"` costs a gradient here.

    Args:
        *args: The Trainer's.
        perturb: The name of a method (`flatminima methods` lists them), or a callable that is given
            the base optimizer and returns a `Perturbed`. Not needed where `optimizers=` has one.
        perturb_options: Options of a method given by name.
        **kwargs: The Trainer's.

    Raises:
        InputError: no method, options that it does not have, or a setting of the Trainer that
            cannot work: DeepSpeed, FSDP, XLA, SageMaker's model parallelism, several GPUs in one
            process, optimizers that step within backward.
    """

    args: Any
    accelerator: Any
    optimizer: Any

    def __init__(
        self,
        *args: Any,
        perturb: str | Callable[[Optimizer], Perturbed] | None = None,
        perturb_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = kwargs.get("optimizers", (None, None))[0]
        self._wrap = _wrapper(perturb, dict(perturb_options or {}), given)
        super().__init__(*args, **kwargs)
        _check_setting(self)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the Trainer's optimizer and wrap it."""
        trainer: Any = super()
        trainer.create_optimizer(*args, **kwargs)
        if _find(self.optimizer) is None:
            self.optimizer = self._wrap(self.optimizer, self.accelerator.scaler)
        found = _find(self.optimizer)
        if found is not None and found.follows_size and self.args.gradient_accumulation_steps > 1:
            raise InputError(
                f"{type(found).__name__} moves the farther the larger a gradient is, and "
                "gradient_accumulation_steps makes those of micro-batches smaller: use larger "
                "batches, or a method that normalizes its step, such as SAM"
            )
        optimizer: Optimizer = self.optimizer
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run the passes of one micro-batch.

        Args:
            model: The model as the Trainer wrapped it.
            inputs: The micro-batch.
            num_items_in_batch: What losses that are sums are divided by.

        Returns:
            The loss at W where a pass ran there, else the passes' weighted mean.
        """
        optimizer = _find(self.optimizer)
        assert optimizer is not None
        trainer: Any = super()
        samples = sample_count(inputs)
        at_home: Tensor | None = None
        mean: Tensor | None = None
        for part in optimizer.passes(inputs):
            current = optimizer.current_pass
            assert current is not None
            share = fraction(current.share, samples)
            items = num_items_in_batch
            if items is not None and share != 1:
                items = items * share
            with optimizer.synchronizing(model):
                loss: Tensor = trainer.training_step(model, part, items)
            if current.at_home:
                at_home = loss * share if at_home is None else at_home + loss * share
            weighted = loss * (current.weight * share)
            mean = weighted if mean is None else mean + weighted
        assert mean is not None
        return mean if at_home is None else at_home


def _wrapper(
    perturb: str | Callable[[Optimizer], Perturbed] | None, given: dict[str, Any], optimizer: Any
) -> Callable[[Optimizer, Any], Perturbed]:
    """The function that wraps the base optimizer, given the gradient scaler too."""
    if isinstance(optimizer, Perturbed):
        if perturb is not None:
            raise InputError(
                f"optimizers= has {type(optimizer).__name__} already: leave perturb= out"
            )
        return lambda base, scaler: optimizer
    if perturb is None:
        raise InputError(f"the trainer needs a method:\n\n    {USE}")
    if isinstance(perturb, str):
        name = perturb
        # What is wrong with the options is said now, not when training starts.
        make(name, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), **given)

        def by_name(base: Optimizer, scaler: Any) -> Perturbed:
            scaled = {"scaler": scaler} if scaler is not None and "scaler" in options(name) else {}
            return make(name, base, **{**scaled, **given})

        return by_name
    if given:
        raise InputError("perturb_options are for a method given by name: put them in the callable")
    wrap = perturb

    def by_callable(base: Optimizer, scaler: Any) -> Perturbed:
        made = wrap(base)
        if not isinstance(made, Perturbed):
            raise InputError(
                f"perturb= must return the wrapped optimizer, and returned {type(made).__name__}: "
                "perturb=lambda base: flatminima.NSO(base, sigma=0.01)"
            )
        return made

    return by_callable


def _find(optimizer: Any) -> Perturbed | None:
    """Our optimizer, within accelerate's wrapper or bare."""
    while optimizer is not None and not isinstance(optimizer, Perturbed):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _check_setting(trainer: Any) -> None:
    """Refuse what cannot work.

    Raises:
        InputError: with the reason.
    """
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    distributed = str(getattr(trainer.accelerator, "distributed_type", "")).rpartition(".")[2]
    sharded = "gradients are sharded or reduced where the passes cannot weigh them"
    for met, what, why in (
        (distributed == "DEEPSPEED", "DeepSpeed", "its engine takes the optimizer's place"),
        (distributed == "FSDP", "FSDP", sharded),
        (distributed == "MEGATRON_LM", "Megatron-LM", "its engine takes the optimizer's place"),
        (distributed == "XLA", "XLA", "weights cannot be moved in place within its lazy graph"),
        (optim in FUSED or "layerwise" in optim, f"optim={optim!r}", "it steps within backward"),
        (
            trainer.args.n_gpu > 1,
            "torch.nn.DataParallel",
            "it copies the model in each forward; start one process for each GPU with torchrun",
        ),
    ):
        if met:
            raise InputError(f"{type(trainer).__name__} does not work with {what}: {why}")
