"""All knobs of a run: where they stand, and how far around it they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flatminima.errors import InputError
from flatminima.perturb.noise import Stream, tensor_ids
from flatminima.tuning.self_tuning.knob import Knob, inverse_softplus


class Knobs:
    r"""H knobs at $\lambda$, drawn as $u = \lambda + \varsigma \odot \epsilon$.

    $\epsilon \sim N(0, I)$ and $\varsigma = \mathrm{softplus}(s)$. Draws are addressed by counters:
    the same counters give the same $\epsilon$, whatever was drawn before.

    Attributes:
        knobs: By name.
        position: $\lambda$, shape (H,), a leaf that requires its gradient.
        raw_scale: s, likewise.

    Args:
        knobs: By name.
        dtype: float32 or float64.
        device: Where the model is.
        seed: Of the draws.
        from_start: Whether $\lambda$ is counted from where the knobs start, not from r's own zero:
            then the gates are closed at first, and a pretrained model begins as it was.

    Raises:
        InputError: there is no knob.
    """

    def __init__(
        self,
        knobs: Mapping[str, Knob],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        from_start: bool = False,
    ) -> None:
        if not knobs:
            raise InputError("there is no knob to tune: give at least one, as {'dropout': Knob(..)")
        self.knobs = dict(knobs)
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        positions = [knob.position() for knob in self.knobs.values()]
        scales = [inverse_softplus(knob.scale) for knob in self.knobs.values()]
        self._origin = torch.tensor(positions, **where) * from_start
        self.position = torch.tensor(positions, **where).sub_(self._origin).requires_grad_()
        self.raw_scale = torch.tensor(scales, **where).requires_grad_()
        self._shared = torch.tensor([knob.shared for knob in self.knobs.values()], device=device)
        self._stream, self._ids = Stream(seed), tensor_ids(["each", "shared"])

    def __len__(self) -> int:
        return len(self.knobs)

    @property
    def scale(self) -> Tensor:
        r"""$\varsigma$, shape (H,)."""
        return softplus(self.raw_scale)

    def noise(self, rows: int, *counters: int, rank: int = 0) -> Tensor:
        """Epsilon, shape (rows, H); columns of shared knobs hold one number, on all ranks."""
        like = self.position

        def normal(i: int, rows: int, *at: int) -> Tensor:
            generator = self._stream.generator(torch.device("cpu"), self._ids[i], *at)
            return torch.randn(rows, len(self), dtype=like.dtype, generator=generator)

        each, shared = normal(0, rows, *counters, rank), normal(1, 1, *counters)
        return torch.where(self._shared, shared.to(like.device), each.to(like.device))

    def draw(self, rows: int, *counters: int, rank: int = 0) -> Tensor:
        """u, shape (rows, H), with its derivatives in `position` and `raw_scale`."""
        return self.position + self.scale * self.noise(rows, *counters, rank=rank)

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """The value of each knob for each row of u, shape (rows,); of a shared one shape ()."""
        found = {}
        for i, (name, knob) in enumerate(self.knobs.items()):
            own = u[0, i] if knob.shared else u[:, i]
            found[name] = knob.value(own + self._origin[i])
        return found

    def current(self) -> dict[str, float]:
        """The values where the knobs stand."""
        at = self.position.detach() + self._origin
        return {n: k.value(at[i]).item() for i, (n, k) in enumerate(self.knobs.items())}

    def entropy(self) -> Tensor:
        r"""$\sum_i \log(\varsigma_i \sqrt{2 \pi e})$, that of the draws, in nats."""
        return (self.scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Names, positions and scales."""
        tensors = {"position": self.position, "raw_scale": self.raw_scale}
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return {"names": list(self.knobs), "seed": self._stream.seed, **copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises:
            InputError: it is of other knobs.
        """
        if state["names"] != list(self.knobs):
            raise InputError(
                f"the state is of the knobs {', '.join(state['names'])}, and these are "
                f"{', '.join(self.knobs)}: build them as they were"
            )
        self._stream = Stream(state["seed"])
        with torch.no_grad():
            self.position.copy_(state["position"])
            self.raw_scale.copy_(state["raw_scale"])
