"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from flatminima.errors import InputError
from flatminima.measure import LiveTrace
from flatminima.objectives import Objective
from flatminima.perturb import Perturbed, global_norm
from flatminima.perturb.shares import cut, sample_count
from flatminima.progress import Progress
from flatminima.training import checkpoint
from flatminima.training.averaging import Average
from flatminima.training.batches import Epoch, batches_per_epoch
from flatminima.training.directory import RunDirectory
from flatminima.training.evaluate import Score, evaluate, loader, to_device
from flatminima.training.interrupts import Interrupted, Request, deferred
from flatminima.training.logs import Log
from flatminima.training.specs import LoopSpec


class NonFinite(InputError):
    """A loss or gradient that is not finite ended the run."""


@dataclass
class State:
    """How far a run has come; it is checkpointed, and nothing else is needed beside the tensors.

    Attributes:
        step: Steps taken, skipped ones included.
        gradients: Gradients computed, in batches.
        seconds: Time spent in steps.
        skipped: Steps left out because a loss or gradient was not finite.
        best_accuracy: Best validation accuracy so far.
        best_step: The step it was reached at.
        stale_epochs: Epochs since then.
        stopped_early: Whether that ended the run.
    """

    step: int = 0
    gradients: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    best_accuracy: float = -math.inf
    best_step: int = 0
    stale_epochs: int = 0
    stopped_early: bool = False


@dataclass
class Run:
    """What a run works with.

    Attributes:
        accelerator: Of Hugging Face accelerate: device, processes, mixed precision.
        model: As prepared by the accelerator.
        optimizer: Decides where gradients are taken.
        scheduler: Of the learning rate, stepped after each step.
        objective: What is minimized.
        train: Encoded training set.
        validation: Encoded validation set; None where there is none.
        spec: The loop's settings, defaults filled in.
        max_grad_norm: Clips the averaged gradient; None does not.
        total_steps: When to end.
        directory: Where to write; None on processes that write nothing.
        log: Takes the records of steps and epochs.
        companions: Writes what belongs beside the weights of a checkpoint.
        average: Gathers the mean of the weights; None where none is kept.
        meter: Reads the Hessian's trace off the passes; None where none is asked for.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Perturbed
    scheduler: LambdaLR
    objective: Objective
    train: Any
    validation: Any | None
    spec: LoopSpec
    max_grad_norm: float | None
    total_steps: int
    directory: RunDirectory
    log: Log
    companions: Callable[[Path], None]
    average: Average | None = None
    meter: LiveTrace | None = None

    def __post_init__(self) -> None:
        # accelerate steps the optimizer through this, for its gradient scaler.
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.per_epoch = batches_per_epoch(
            len(self.train), self.spec.batch_size, self.accelerator.num_processes
        )


def train(run: Run, state: State, progress: Progress) -> State:
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
                progress("training", state.step, run.total_steps)
                epoch_done = state.step % run.per_epoch == 0 or state.step == run.total_steps
                if epoch_done:
                    _end_of_epoch(run, state)
                if epoch_done or (spec.save_every and state.step % spec.save_every == 0):
                    save(run, state)
                if _asked_to_stop(run, stop):
                    if not epoch_done:
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
    loss = _gather_gradient(run, state, samples, batch)
    norm = _clip(run)
    finite = bool(torch.isfinite(norm)) and (
        run.accelerator.num_processes > 1 or bool(torch.isfinite(loss))
    )
    # A gradient scaler finds its scale by overflowing: it skips such steps by itself.
    if finite or run.accelerator.scaler is not None:
        run.stepper.step()
        finite = not run.stepper.step_was_skipped
    elif run.spec.on_nan == "stop":
        raise NonFinite(_not_finite(run, state, loss, norm))
    if not finite:
        state.skipped += 1
        for buffer, value in zip(run.model.buffers(), before, strict=False):
            buffer.copy_(value)
    run.stepper.zero_grad()
    rates = [group["lr"] for group in run.optimizer.param_groups]
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
            **({} if finite else {"skipped": True}),
        }
    )


def _live(run: Run) -> dict[str, float | None]:
    """The trace along the run so far, where it is metered; None where it is not known yet."""
    if run.meter is None:
        return {}
    found = run.meter.estimate().to_dict()
    return {"live_trace": found["value"], "live_trace_stderr": found["stderr"]}


def _gather_gradient(run: Run, state: State, total: int, batch: Any) -> Tensor:
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


def _clip(run: Run) -> Tensor:
    """Clip the gradient if asked to; its norm before that."""
    if run.max_grad_norm is not None:
        norm: Tensor = run.accelerator.clip_grad_norm_(run.parameters, run.max_grad_norm)
        return norm
    run.accelerator.unscale_gradients(run.stepper)
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    return global_norm(gradients) if gradients else torch.zeros(())


def _end_of_epoch(run: Run, state: State) -> None:
    epoch = -(-state.step // run.per_epoch)
    record: dict[str, Any] = {"step": state.step, "epoch": epoch}
    if run.validation is not None:
        score = _validate(run)
        record |= {"validation_accuracy": score.accuracy, "validation_loss": score.loss}
        if score.accuracy > state.best_accuracy:
            state.best_accuracy, state.best_step = score.accuracy, state.step
            state.stale_epochs = 0
            if run.spec.keep == "best":
                save(run, state, "best")
        else:
            state.stale_epochs += 1
        patience = run.spec.early_stopping
        state.stopped_early = patience is not None and state.stale_epochs >= patience
    run.log.write(record)


def _validate(run: Run) -> Score:
    """The first process's score, which all go by: BatchNorm statistics are each process's own."""
    found = torch.zeros(2, dtype=torch.float64, device=run.accelerator.device)
    if run.accelerator.is_main_process:
        model = run.accelerator.unwrap_model(run.model)
        batches = loader(run.validation, run.spec.batch_size)
        score = evaluate(model, batches, run.accelerator.device)
        found += torch.tensor([score.accuracy, score.loss])
    if run.accelerator.num_processes > 1:
        torch.distributed.broadcast(found, src=0)
    return Score(*found.tolist())


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
