"""BatchNorm statistics, and every other buffer, while passes run at moved weights.

A buffer that a forward pass changes (running mean and variance, counters, spectral norm vectors)
must come out of a step as if there had been one forward pass at W:

- each pass starts from the buffers as they were before the first pass;
- if a pass ran at W, its buffers are kept: exactly those of plain training (where passes at W saw
  parts of the batch, their average);
- otherwise the average over the passes is kept, each counting as its gradient does. For passes at
  W + U and W - U the terms odd in U cancel, so it differs from the statistics at W by O(sigma^2);
- where a pass overflowed (a step that a `GradScaler` will skip) the start is kept;
- integers (the count of batches) are kept from the first pass;
- after an exception the buffers are as before the first pass;
- a step of one pass at W is left alone: its buffers are those of plain training by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from flatminima.perturb.shards import gather_anew, may_shard


class _Buffer:
    """One buffer of one module, as it was before the first pass.

    What changed is told by value: BatchNorm's kernels write the running statistics without raising
    the tensor's version counter. The comparison stays on the device, elementwise.
    """

    def __init__(self, owner: dict[str, Tensor | None], name: str, tensor: Tensor) -> None:
        self._owner, self._name = owner, name
        self._tensor, self._start = tensor, tensor.clone()
        self.discard()

    def discard(self) -> None:
        """Forget what was gathered."""
        self._result: Tensor | None = None
        self._changed: Tensor | None = None
        self._total = 0.0

    def gather(self, weight: float) -> None:
        """Add the present value to the average; of an integer keep the first."""
        # Not `get`: the buffers of a ScriptModule are a mapping without it.
        if self._name not in self._owner or (now := self._owner[self._name]) is None:
            return
        if not now.is_floating_point() or now.shape != self._start.shape:
            self._result = now.clone() if self._result is None else self._result
        elif self._result is None or self._changed is None:
            self._result, self._changed, self._total = now * weight, now != self._start, weight
        else:
            self._result.add_(now, alpha=weight)
            self._changed |= now != self._start
            self._total += weight

    def average(self) -> Tensor | None:
        """What was gathered; where no pass changed the buffer, or one overflowed, its start."""
        if self._result is None or self._changed is None:
            return self._result
        mean = self._result if self._total == 1.0 else self._result / self._total
        return torch.where(self._changed & torch.isfinite(mean), mean, self._start)

    def write(self, value: Tensor | None = None) -> None:
        """Set the buffer to `value`, or to its start where there is none."""
        value = self._start if value is None else value
        if value.shape == self._tensor.shape:
            self._tensor.copy_(value)
        else:
            self._tensor = value
        self._owner[self._name] = self._tensor


class Buffers:
    """Keeps the buffers of every module that runs a forward pass.

    An optimizer has no handle on the modules, so they are found as they are called: a global
    forward hook, alive only while passes run, sees each outermost module before its forward.

    Args:
        model: The module, where it is known; then no hook is needed.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._buffers: list[_Buffer] = []
        self._model = model
        self._seen: set[int] = set()
        self._called: set[int] = set()
        self._found_by_hook = model is None
        self._from_home = False
        if model is not None:
            self._adopt(model)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While open, modules are found when they are called."""
        if not self._found_by_hook:
            yield
            return
        self._listen()
        try:
            yield
        finally:
            self._handle.remove()

    def _listen(self) -> None:
        self._handle = register_module_forward_pre_hook(self._on_call)

    def _on_call(self, module: nn.Module, _: Any) -> None:
        if id(module) not in self._seen:
            self._adopt(module)
        if may_shard() and id(module) not in self._called:
            self._called.update(map(id, module.modules()))
            gather_anew(module)
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            # torch.compile traces each global hook that it sees, and compiles anew for a new one.
            self._handle.remove()
            self._handle = module.register_forward_hook(self._on_return, always_call=True)

    def _on_return(self, *_: Any) -> None:
        self._handle.remove()
        self._listen()

    @torch.no_grad()
    def start_pass(self) -> None:
        """Set the buffers to what they were before the first pass."""
        self._called.clear()
        if self._model is not None:
            gather_anew(self._model)
        for buffer in self._buffers:
            buffer.write()

    @torch.no_grad()
    def end_pass(self, weight: float, part_at_home: float | None = None) -> None:
        """Gather what the pass made of the buffers.

        Args:
            weight: What the pass's gradient counts.
            part_at_home: The part of the batch that the pass saw, if it ran at W.
        """
        at_home = part_at_home is not None
        if at_home and not self._from_home:
            for buffer in self._buffers:
                buffer.discard()
        self._from_home |= at_home
        counts = part_at_home if at_home else 0.0 if self._from_home else weight
        if counts:
            for buffer in self._buffers:
                buffer.gather(counts)

    @torch.no_grad()
    def finish(self) -> None:
        """Write what was gathered."""
        for buffer in self._buffers:
            buffer.write(buffer.average())

    @torch.no_grad()
    def rewind(self) -> None:
        """Write what was there before the first pass."""
        for buffer in self._buffers:
            buffer.write()

    @torch.no_grad()
    def _adopt(self, module: nn.Module) -> None:
        for part in module.modules():
            if id(part) not in self._seen:
                self._seen.add(id(part))
                self._buffers += [
                    _Buffer(part._buffers, name, tensor)
                    for name, tensor in part._buffers.items()
                    if tensor is not None and _writable(tensor)
                ]


def _writable(tensor: Tensor) -> bool:
    """Whether a forward pass could write to a buffer: not to expanded or inference tensors."""
    expanded = any(n > 1 and not s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return not (expanded or tensor.is_inference())
