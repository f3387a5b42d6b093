"""Regularized mask tuning in a run: masks, and gradients dropped where the base model objects."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flatminima.arguments import above, between, whole
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective
from flatminima.reparam.gradient_dropout import dropped
from flatminima.reparam.masks import MaskTuning, bake_masks, save_masks, share_masked
from flatminima.reparam.registry import register
from flatminima.reparam.slot import Reparam

ONE_CALL = """r-amt holds the model's prediction against that of the unmasked one on the same \
inputs, and this objective calls the model {calls} times for one loss: take one that calls it \
once, or strength=0"""
NO_CLASSES = """r-amt compares predictions as probabilities of classes, and the model gives \
outputs of the shape {shape}: use it for classification, or take strength=0"""
UNCHANGED = """no weight was switched off: scores fall from init to the threshold by at most about \
the learning rate a step with Adam, so steps times learning rate must be more than {gap:g}"""


@register(
    Card(
        name="r-amt",
        title="Regularized mask tuning",
        equation="W 1[M > threshold]; M is trained, W is frozen; a dropped against b",
        gradients="1",
        buffers="2",
        strength="strength",
        suggested="1; 0.3 keeps less of the base model",
        source="Zheng et al., 2023, arXiv 2307.15049",
        slot="reparam",
    )
)
class RAMT(Reparam):
    r"""`MaskTuning`, the norm penalty and gradient dropout as one reparametrization.

    In training mode the objective becomes $L + c \sum_l \lVert M_l \rVert_2$, with the gradient a
    of a step. b is the gradient of $T^2 \cdot$ the mean cross-entropy of
    $\mathrm{softmax}(z / T)$ against $\mathrm{softmax}(z_{ref} / T)$: z is the prediction that the
    objective saw, $z_{ref}$ that of the unmasked model on the same inputs, in evaluation mode
    (no dropout) and without gradient. b is gathered with the weights that the passes of the step,
    its micro-batches and its processes count by, and a is filtered once, before it is clipped; so
    how a step is cut decides nothing. Passes that move the weights along a gradient (SAM's) move
    them along one that is not filtered. U is addressed by seed and step: nothing has to be saved
    for a run that is resumed. SWA and EMA average the scores, and the masks are those of the mean
    scores: a mean of masks would be none.

    Source: Zheng et al., Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
    Vision-Language Models, ICCV 2023, arXiv 2307.15049. Theirs is one pass of one process.

    Args:
        model: It is changed in place; all but the scores is frozen.
        strength: l of `gradient_dropout`, from 0 (no dropout, and no reference) to 1.
        penalty: c, 0 or above.
        temperature: T, above 0.
        targets: As those below, of `MaskTuning`.
        init: See there.
        threshold: See there.
        seed: Of U, 0 or above; default: torch's initial seed, which `torch.manual_seed` sets.

    Raises:
        InputError: a value out of range, or as `MaskTuning`; at a call of the objective, outputs
            that are no logits of classes, or an objective that calls the model more than once.
    """

    changes_modules: ClassVar[bool] = True
    freezes_statistics: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1.0,
        penalty: float = 1e-4,
        temperature: float = 1.0,
        targets: str | None = None,
        init: float = 0.01,
        threshold: float = 0.005,
        seed: int | None = None,
    ) -> None:
        self.strength = between("strength", strength, 0, 1)
        self.penalty = between("penalty", penalty, 0)
        self.temperature = above("temperature", temperature)
        self.seed = torch.initial_seed() if seed is None else whole("seed", seed, 0)
        # A layer of nn.Sequential is called by a number, which recipes read as one.
        named = None if targets is None else str(targets)
        self.tuning = MaskTuning(model, named, init, threshold)
        super().__init__(model)
        self._gap = init - threshold
        self._weight = 1.0
        self._reference: list[Tensor | None] = [None] * len(self.tuning.scores)

    def objective(self, objective: Objective) -> Objective:
        """The objective and the penalty; its backward pass gathers b too."""

        def regularized(model: nn.Module, batch: Batch) -> Tensor:
            if not model.training:
                return objective(model, batch)
            with self._seen() as calls:
                loss = objective(model, batch)
            if self.penalty:
                loss = loss + self.penalty * self.tuning.norm()
            if self.strength and self._weight and loss.requires_grad:
                gather = partial(self._gather, self._distance(calls), self._weight)
                loss.register_hook(gather)  # type: ignore[no-untyped-call]
            return loss

        return regularized

    def before_pass(self, weight: float) -> None:
        """Let what follows count that much."""
        self._weight = weight

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Filter the scores' gradients by the reference gradients that were gathered."""
        reference, self._reference = self._reference, [None] * len(self._reference)
        self._weight = 1.0
        generators: dict[torch.device, torch.Generator] = {}
        for scores, b in zip(self.tuning.scores.values(), reference, strict=True):
            if b is None or scores.grad is None:
                continue
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(b)
                b /= torch.distributed.get_world_size()
            a = scores.grad
            if a.device not in generators:
                generators[a.device] = torch.Generator(a.device).manual_seed(self._address(step))
            uniform = torch.rand(
                a.shape, generator=generators[a.device], device=a.device, dtype=a.dtype
            )
            a.copy_(dropped(a, b, self.strength, uniform))

    def bake(self, model: nn.Module) -> None:
        """Multiply each weight by its mask, and leave ordinary layers."""
        bake_masks(model)

    def write(self, model: nn.Module, folder: Path) -> None:
        """Leave the masks as `mask.safetensors`; see `apply_mask`."""
        if share_masked(model) == 0:
            warnings.warn(UNCHANGED.format(gap=self._gap), stacklevel=2)
        save_masks(model, folder / "mask.safetensors")

    def _address(self, step: int) -> int:
        digest = hashlib.sha256(f"gradient dropout {self.seed} {step}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    @contextmanager
    def _seen(self) -> Iterator[list[tuple[Any, Any, Any]]]:
        """While open, notes what the model is given and gives."""
        calls: list[tuple[Any, Any, Any]] = []

        def note(module: nn.Module, given: Any, named: Any, outputs: Any) -> None:
            calls.append((given, named, outputs))

        handle = self.model.register_forward_hook(note, with_kwargs=True)
        try:
            yield calls
        finally:
            handle.remove()

    def _distance(self, calls: list[tuple[Any, Any, Any]]) -> Tensor:
        """How far the prediction is from that of the unmasked model, L_b."""
        if len(calls) != 1:
            raise InputError(ONE_CALL.format(calls=len(calls)))
        given, named, outputs = calls[0]
        z = getattr(outputs, "logits", outputs)
        if not isinstance(z, Tensor) or z.dim() < 2 or z.shape[-1] < 2:
            raise InputError(NO_CLASSES.format(shape=tuple(getattr(z, "shape", ()))))
        with self.tuning.without():
            outputs = self.model(*given, **named)
        wanted = getattr(outputs, "logits", outputs).float() / self.temperature
        said = (z.float() / self.temperature).log_softmax(-1)
        cross: Tensor = -(wanted.softmax(-1) * said).sum(-1).mean()
        distance: Tensor = cross * self.temperature**2
        return distance

    def _gather(self, distance: Tensor, weight: float, scale: Tensor) -> None:
        """Add b, in the scale that the loss is differentiated in; called in its backward pass."""
        found = torch.autograd.grad(
            distance, list(self.tuning.scores.values()), scale.to(distance.dtype), True
        )
        for index, b in enumerate(found):
            before = self._reference[index]
            self._reference[index] = weight * b if before is None else before.add_(b, alpha=weight)
