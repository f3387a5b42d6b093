"""The gradient of a step: its passes, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from flatminima.perturb import global_norm
from flatminima.perturb.shares import cut, sample_count
from flatminima.training.state import Run, State


def gather_gradient(run: Run, state: State, total: int, batch: Any) -> Tensor:
    """Run the passes of a step; the loss at W where a pass ran there, else the passes' mean."""
    accelerator, optimizer = run.accelerator, run.optimizer
    own = sample_count(batch)
    # Processes average their gradients, so each counts its mean loss by its part of the samples.
    share = own * accelerator.num_processes / total
    at_home = mean = torch.zeros((), device=accelerator.device)
    seen_home = False
    size = run.spec.micro_batch_size or own
    parts = list(_pieces(batch, size)) if optimizer.by_micro_batch else [batch]
    for part in parts:
        part_samples = sample_count(part)
        for piece in optimizer.passes(part):
            current = optimizer.current_pass
            assert current is not None
            samples = sample_count(piece)
            if run.reparam is not None:
                run.reparam.before_pass(current.weight * samples / part_samples)
            loss = torch.zeros((), device=accelerator.device)
            done = 0
            for micro in _pieces(piece, size):
                count = sample_count(micro)
                done += count
                last = optimizer.must_synchronize and done == samples and part is parts[-1]
                with nullcontext() if last else accelerator.no_sync(run.model):
                    with accelerator.autocast(), torch.set_grad_enabled(current.backward):
                        value = run.objective(run.model, micro)
                    if current.backward:
                        accelerator.backward(
                            value * (share * (part_samples / own) * (count / samples))
                        )
                loss = loss + value.detach().float() * (count / samples)
            if run.meter is not None:
                run.meter.saw(loss * (part_samples / own))
            if current.at_home:
                at_home, seen_home = at_home + loss * (samples / own), True
            mean = mean + loss * (current.weight * samples / own)
            state.gradients += current.backward * samples / own
    return at_home if seen_home else mean


def _pieces(batch: Any, size: int) -> Iterator[Any]:
    """A batch in pieces of `size` samples, the last with what is left."""
    samples = sample_count(batch)
    for start in range(0, samples, size):
        stop = min(start + size, samples)
        yield cut(batch, start, stop, samples) if size < samples else batch


def clip(run: Run) -> Tensor:
    """Clip the gradient if asked to; its norm before that."""
    if run.max_grad_norm is not None:
        norm: Tensor = run.accelerator.clip_grad_norm_(run.parameters, run.max_grad_norm)
        return norm
    run.accelerator.unscale_gradients(run.stepper)
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    return global_norm(gradients) if gradients else torch.zeros(())
