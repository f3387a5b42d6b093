"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure import Estimate
from flatminima.perturb.shares import sample_count
from flatminima.perturb.wrapper import calls_closure
from flatminima.progress import TrainingProgress
from flatminima.training import checkpoint
from flatminima.training.batches import Epoch
from flatminima.training.data.device import to_device
from flatminima.training.gradient import clip, gather_gradient
from flatminima.training.interrupts import Interrupted, Request, deferred
from flatminima.training.loader import loader
from flatminima.training.second_order import account, second_order_step
from flatminima.training.state import Run, State


class NonFinite(InputError):
    """A loss or gradient that is not finite ended the run."""


def train(run: Run, state: State, progress: TrainingProgress) -> State:
    """Train from where `state` stands to the last step, and return the final state.

    Raises:
        NonFinite: a loss or gradient is not finite and the run is not told to skip such steps.
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    spec = run.spec
    with deferred() as stop:
        while state.step < run.total_steps and not state.stopped_early:
            for samples, batch in _rest_of_epoch(run, state.step):
                _timed_step(run, state, samples, batch)
                progress("training", state.step, run.total_steps, *_beside(run))
                epoch_done = state.step % run.per_epoch == 0 or state.step == run.total_steps
                if epoch_done:
                    _end_of_epoch(run, state)
                due = epoch_done if spec.save_every is None else not state.step % spec.save_every
                saved = due or state.step == run.total_steps or state.stopped_early
                if saved:
                    save(run, state)
                if _asked_to_stop(run, stop):
                    if not saved:
                        save(run, state)
                    raise Interrupted(
                        f"stopped after step {state.step} of {run.total_steps}, saved; continue "
                        f"with: flatminima finetune --resume {run.directory.path}"
                    )
                if state.step == run.total_steps or state.stopped_early:
                    break
    return state


def _rest_of_epoch(run: Run, step: int) -> Iterator[tuple[int, Any]]:
    """The samples of each step in all processes together, and this process's batch of them."""
    epoch, done = divmod(step, run.per_epoch)
    order = Epoch(
        len(run.train),
        run.spec.batch_size,
        seed=run.spec.seed,
        epoch=epoch,
        start=done,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        shuffled=run.train.shuffled,
    )
    run.model.train()
    batches = loader(run.train, batch_sampler=order)
    for indices, batch in zip(order.batches, batches, strict=True):
        yield len(indices), batch


def full_batches(run: Run) -> Iterator[Any]:
    """The training set once over, in shuffled batches of one size; the rest is left out."""
    order = Epoch(len(run.train), run.spec.batch_size, seed=run.spec.seed, epoch=run.total_steps)
    size = min(len(run.train), run.spec.batch_size)
    for batch in loader(run.train, batch_sampler=order):
        if sample_count(batch) == size:
            yield batch


def _timed_step(run: Run, state: State, samples: int, batch: Any) -> None:
    started = time.perf_counter()
    before = [b.clone() for b in run.model.buffers()] if run.spec.on_nan == "skip" else []
    batch = to_device(batch, run.accelerator.device)
    if run.tuned is not None:
        run.tuned.before_step()
    take = second_order_step if calls_closure(run.optimizer.base) else _gradient_step
    loss, norm, finite = take(run, state, samples, batch)
    if not finite and run.accelerator.scaler is None and run.spec.on_nan == "stop":
        raise NonFinite(_not_finite(run, state, loss, norm))
    if finite and run.reparam is not None:
        run.reparam.after_step()
    if run.remembering is not None:
        run.remembering.after_step(finite)
    if not finite:
        state.skipped += 1
        for buffer, value in zip(run.model.buffers(), before, strict=False):
            buffer.copy_(value)
    run.stepper.zero_grad()
    rates = [group["lr"] for group in run.optimizer.param_groups]
    knobs = {} if run.tuned is None else run.tuned.after_step()
    state.gradients += bool(knobs)
    run.scheduler.step()
    state.step += 1
    if run.average is not None:
        run.average.after(state.step)
    state.seconds += time.perf_counter() - started
    run.log.write(
        {
            "step": state.step,
            "epoch": (state.step - 1) / run.per_epoch,
            "loss": _number(loss),
            "grad_norm": _number(norm),
            "lr": rates[0],
            "gradients": state.gradients,
            "seconds": round(state.seconds, 4),
            **_live(run),
            **account(run),
            **({"tuned": knobs} if knobs else {}),
            **({} if finite else {"skipped": True}),
        }
    )


def _gradient_step(run: Run, state: State, samples: int, batch: Any) -> tuple[Tensor, Tensor, bool]:
    """Gather a gradient and step along it: the loss, the gradient's norm, whether it was taken."""
    loss = gather_gradient(run, state, samples, batch)
    if run.reparam is not None:
        run.reparam.before_step(state.step)
    norm = clip(run)
    finite = bool(torch.isfinite(norm)) and (
        run.accelerator.num_processes > 1 or bool(torch.isfinite(loss))
    )
    # A gradient scaler finds its scale by overflowing: it skips such steps by itself.
    if finite or run.accelerator.scaler is not None:
        run.stepper.step()
        finite = not run.stepper.step_was_skipped
    return loss, norm, finite


def _live(run: Run) -> dict[str, float | None]:
    """The curvature along the run so far, where it is metered; None where it is not known yet."""
    found: dict[str, Estimate] = {}
    if run.meter is not None:
        found["live_trace"] = run.meter.estimate()
        if run.meter.compares_losses:
            found["live_smoothed_curvature"] = run.meter.smoothed_curvature()
            found["live_trace_corrected"] = run.meter.corrected()
    numbers = {
        name: number
        for first, estimate in found.items()
        for name, number in ((first, estimate.value), (f"{first}_stderr", estimate.stderr))
    }
    return {name: x if math.isfinite(x) else None for name, x in numbers.items()}


def _beside(run: Run) -> tuple[str, ...]:
    """What to show beside the progress of the steps, if there is something."""
    if run.meter is None or not math.isfinite(run.meter.last()):
        return ()
    return (f"trace {run.meter.estimate()}",)


def _end_of_epoch(run: Run, state: State) -> None:
    epoch = -(-state.step // run.per_epoch)
    record: dict[str, Any] = {"step": state.step, "epoch": epoch}
    due = epoch % run.spec.validate_every == 0 or state.step == run.total_steps
    if run.validation is not None and due:
        score = _validate(run)
        record |= {f"validation_{metric}": value for metric, value in score.items()}
        if run.task.better(score) > state.best_score:
            state.best_score, state.best_step = run.task.better(score), state.step
            state.stale_epochs = 0
            if run.spec.keep == "best":
                save(run, state, "best")
        else:
            state.stale_epochs += 1
        patience = run.spec.early_stopping
        state.stopped_early = patience is not None and state.stale_epochs >= patience
    record |= run.look(epoch)
    if due or len(record) > 2:
        run.log.write(record)


def _validate(run: Run) -> dict[str, float]:
    """The first process's score, which all go by: BatchNorm statistics are each process's own."""
    device, names = run.accelerator.device, run.task.metrics
    found = torch.zeros(len(names), dtype=torch.float64, device=device)
    if run.accelerator.is_main_process:
        model = run.accelerator.unwrap_model(run.model)
        score = run.task.score(model, loader(run.validation, run.spec.batch_size), device)
        found += torch.tensor([score[name] for name in names], dtype=torch.float64)
    if run.accelerator.num_processes > 1:
        torch.distributed.broadcast(found, src=0)
    return dict(zip(names, found.tolist(), strict=True))


def _asked_to_stop(run: Run, stop: Request) -> bool:
    """Whether any process was asked to: signals reach them at different steps."""
    if run.accelerator.num_processes == 1:
        return stop.made
    asked = torch.tensor([float(stop.made)], device=run.accelerator.device)
    torch.distributed.all_reduce(asked)
    return bool(asked > 0)


def save(run: Run, state: State, name: str = "last") -> None:
    """Write a checkpoint, by the main process alone.

    Raises:
        NonFinite: a weight is not finite; the checkpoints before are left as they are.
        InputError: it cannot be written.
    """
    if not all(bool(torch.isfinite(parameter).all()) for parameter in run.parameters):
        kept = run.directory.checkpoints / "last"
        raise NonFinite(
            f"after step {state.step} weights are not finite; the last good checkpoint is {kept}. "
            "Lower --lr or --sigma, or set --max-grad-norm"
        )
    if not run.accelerator.is_main_process:
        return
    tensors = {
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "average": run.average.state_dict() if run.average else None,
        "meter": run.meter.state_dict() if run.meter else None,
        "objective": run.remembering.state_dict() if run.remembering else None,
        "tuned": run.tuned.tuner.state_dict() if run.tuned else None,
        "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler else None,
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }
    checkpoint.save(
        run.directory.checkpoints / name,
        run.accelerator.unwrap_model(run.model),
        tensors if name == "last" else None,
        {key: value for key, value in asdict(state).items() if value != -math.inf},
        run.companions,
    )


def load(run: Run, found: checkpoint.Checkpoint) -> State:
    """Bring a run to where a checkpoint stands."""
    found.load_model(run.accelerator.unwrap_model(run.model))
    tensors = found.load_optimizer()
    run.optimizer.load_state_dict(tensors["optimizer"])
    run.scheduler.load_state_dict(tensors["scheduler"])
    if run.average and tensors["average"]:
        run.average.load_state_dict(tensors["average"])
    if run.meter and tensors.get("meter"):
        run.meter.load_state_dict(tensors["meter"])
    if run.remembering:
        run.remembering.load_state_dict(tensors["objective"])
    if run.tuned:
        run.tuned.tuner.load_state_dict(tensors["tuned"])
    if run.accelerator.scaler and tensors["scaler"]:
        run.accelerator.scaler.load_state_dict(tensors["scaler"])
    torch.set_rng_state(tensors["random"]["cpu"])
    if torch.cuda.is_available() and tensors["random"]["cuda"]:
        torch.cuda.set_rng_state_all(tensors["random"]["cuda"])
    return State(**found.state)


def change_learning_rate(run: Run, rate: float) -> None:
    """Let a resumed run go on with another learning rate, its schedule as it was."""
    run.scheduler.base_lrs = [rate for _ in run.scheduler.base_lrs]
    for group, factor in zip(run.optimizer.param_groups, run.scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * factor(run.scheduler.last_epoch)


def _not_finite(run: Run, state: State, loss: Tensor, norm: Tensor) -> str:
    kept = run.directory.checkpoints / "last"
    return (
        f"at step {state.step + 1} the loss is {loss.item():g} and the gradient norm "
        f"{norm.item():g}; the last good checkpoint is {kept}. Go on from it with --resume "
        f"{run.directory.path} and --lr, --max-grad-norm or --on-nan skip, or start anew with a "
        "lower --lr or --sigma"
    )


def _number(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
