"""The same random numbers for each pass over the same data.

Dropout drawn anew at W - U would leave a difference between the passes of a pair that does not
cancel. So every pass over the same samples starts from one state of torch's generators: a step
takes one set of masks, the state after it is that after plain training's step, and methods
compared on one seed see the same masks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch


class Replay:
    """Remembers torch's random state at the first pass over a share of the data, and restores it.

    Args:
        devices: The devices whose generators passes may draw from, besides the CPU.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._accelerators = sorted({d for d in devices if d.type != "cpu"}, key=str)
        self._states: dict[Hashable, list[torch.Tensor]] = {}

    def start(self, share: Hashable) -> None:
        """Begin a pass over `share`: as its first pass began, if there was one."""
        if share not in self._states:
            self._states[share] = [torch.get_rng_state(), *map(_get_state, self._accelerators)]
            return
        on_cpu, *on_accelerators = self._states[share]
        torch.set_rng_state(on_cpu)
        for device, state in zip(self._accelerators, on_accelerators, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


def _get_state(device: torch.device) -> torch.Tensor:
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state
