"""An optimizer around an optimizer that is, to everything around it, an ordinary optimizer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.optim import GNS
from flatminima.perturb import options
from flatminima.perturb.cards import option_names
from flatminima.perturb.noise import Noise, Stream, tensor_ids
from flatminima.perturb.schedules import Schedule, constant, describe
from flatminima.perturb.shards import check_shards, is_sharded, shard_like
from flatminima.perturb.weights import Slot

FROZEN = "perturb_frozen"
"""A group with this key set has its frozen weights moved too; they are never trained."""


class Wrapper(Optimizer):
    """A base optimizer, a strength for each of its groups, and a noise stream.

    `param_groups`, `state` and `defaults` are those of the base optimizer, the same objects, so
    learning-rate schedulers, `add_param_group`, clipping and `GradScaler` need nothing special.

    Args:
        base: Any torch optimizer that needs no closure of its own.
        strength: Sigma or rho of the groups that do not carry their own under `strength_name`.
        schedule: Factor on all strengths at a step.
        seed: Names the noise; default: torch's initial seed.
        model: Its parameters' names address the noise, where it is given.
        scaler: The gradient scaler, for methods to which the size of the gradient matters.

    Raises:
        InputError: a strength that is negative or not finite, nothing to train, or a base optimizer
            that cannot be wrapped.
    """

    card: ClassVar[Card]
    strength_name: ClassVar[str]
    takes_closures: ClassVar[bool] = False
    """Whether the base optimizer may call a closure itself: where no weight is moved."""
    needs_scaler: ClassVar[bool] = False
    """Whether the size of gradients matters, so that a `GradScaler` must be known."""
    follows_size: ClassVar[bool] = False
    """Whether the weights move the farther the larger the gradient is."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Options of other methods that this one is asked for in vain, and why."""

    def __init__(
        self,
        base: Optimizer,
        *,
        strength: float,
        schedule: Schedule | None = None,
        seed: int | None = None,
        model: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        _check_base(base, self.takes_closures)
        self.base = base
        super().__setstate__({})  # torch's hooks, without making groups of our own
        if schedule is not None and not callable(schedule):
            raise InputError(
                f"schedule must be a callable step -> factor, not {schedule!r}: "
                "see flatminima.schedules"
            )
        if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
            raise InputError(f"scaler must be a torch.amp.GradScaler, not {scaler!r}")
        _check_model(model, base)
        self.schedule = schedule or constant()
        self.model = model
        self.scaler = scaler
        self._default_strength = strength
        self._stream = Stream(
            torch.initial_seed() if seed is None else options.whole("seed", seed, 0)
        )
        self._steps = 0
        self._memory: list[dict[str, Tensor]] = []
        self._staged: list[dict[str, Tensor]] | None = None
        for group in self.param_groups:
            self._adopt(group)
        self._tensor_ids = self._name_tensors()

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    def strength(self, group: dict[str, Any]) -> float:
        """Sigma or rho of a group at this step, schedule included."""
        own = options.strength(self.strength_name, group[self.strength_name])
        factor = self.schedule(self._steps)
        return options.strength(f"the schedule's {self.strength_name}", own * factor)

    def _moves(self) -> bool:
        """Whether any weight moves at this step."""
        strong = [group for group in self.param_groups if self.strength(group)]
        return any(
            parameter.requires_grad or group.get(FROZEN, False)
            for group in strong
            for parameter in group["params"]
        )

    def _new_draft(self) -> list[dict[str, Tensor]]:
        """What the method remembers of each parameter, to be changed while passes run."""
        known = self._memory if self._staged is None else self._staged
        count = sum(len(group["params"]) for group in self.param_groups)
        return [dict(memory) for memory in (*known, *[{}] * (count - len(known)))]

    def _slots(self, draft: list[dict[str, Tensor]]) -> list[Slot]:
        """The parameters that may be moved at this step, each with its part of a draft."""
        parameters = [
            (parameter, strength, parameter.requires_grad or group.get(FROZEN, False))
            for group in self.param_groups
            for strength in [self.strength(group)]
            for parameter in group["params"]
        ]
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        return [
            Slot(parameter, strength, tensor_id, scale, memory)
            for (parameter, strength, movable), tensor_id, memory in zip(
                parameters, self._tensor_ids, draft, strict=True
            )
            if strength and movable
        ]

    def _draw(self, slot: Slot, noise: Noise, *counters: int) -> Tensor:
        """Unit-variance noise for one parameter, float32 at least, at an address."""
        dtype = torch.promote_types(slot.tensor.dtype, torch.float32)
        z = torch.empty(slot.tensor.shape, dtype=dtype, device=slot.tensor.device)
        noise.sample(z, self._stream.generator(z.device, slot.tensor_id, *counters))
        return shard_like(z, slot.tensor)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may carry its own sigma or rho."""
        self.base.add_param_group(param_group)
        self._adopt(self.param_groups[-1])
        self._tensor_ids = self._name_tensors()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state; under "perturb" the step, schedule, noise and memory."""
        state = self.base.state_dict()
        state["perturb"] = {
            "method": self.card.name,
            "step": self._steps,
            "seed": self._stream.seed,
            "schedule": describe(self.schedule),
            "options": self._options(),
            "memory": self._memory,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where the optimizer of that state stood.

        A state of the bare base optimizer is taken too: the noise then starts at step 0.

        Raises:
            InputError: the state is of another method or schedule.
        """
        own = state_dict.get("perturb")
        if own is not None:
            self._check_state(own)
        kept = (self.strength_name, FROZEN)
        own_keys = [{k: group[k] for k in kept if k in group} for group in self.param_groups]
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "perturb"})
        for group, own_values in zip(self.param_groups, own_keys, strict=True):
            group.update({k: v for k, v in own_values.items() if k not in group})
            self._adopt(group)
        if own is not None:
            self._steps = own["step"]
            self._stream = Stream(own["seed"])
            parameters = [p for group in self.param_groups for p in group["params"]]
            self._memory = [
                {name: tensor.to(p.device, copy=True) for name, tensor in memory.items()}
                for memory, p in zip(own["memory"], parameters, strict=False)
            ]
        self._staged = None

    @property
    def sharded(self) -> bool:
        """Whether processes hold shards of one set of weights, so that all move to one place."""
        return any(is_sharded(p) for group in self.param_groups for p in group["params"])

    def _adopt(self, group: dict[str, Any]) -> None:
        """Give a group its strength, if it has none of its own."""
        check_shards(group["params"])
        self._check_keys(group)
        if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
            raise InputError(
                "a parameter stands twice in one group of the optimizer: give each once, for "
                "instance list(dict.fromkeys(parameters))"
            )
        options.strength(
            self.strength_name, group.setdefault(self.strength_name, self._default_strength)
        )
        if group.get(FROZEN, False):
            self._check_frozen(group["params"])

    def _check_frozen(self, parameters: list[Tensor]) -> None:
        if self.card.strength not in ("sigma", ""):
            raise InputError(
                f"perturb_frozen moves weights that have no gradient, and {self.card.name!r} moves "
                "along gradients: use a method of noise, such as NSO, or leave perturb_frozen out"
            )
        for parameter in parameters:
            real = parameter.is_floating_point() or parameter.is_complex()
            if not real or parameter.itemsize < 2:
                raise InputError(
                    f"perturb_frozen cannot move weights of {parameter.dtype}: quantized weights "
                    "have no room for noise. Load the model in 16 or 32 bits, or perturb the "
                    "adapters only"
                )

    def _check_keys(self, group: dict[str, Any]) -> None:
        """Refuse what a group says for a method in vain: torch takes any key."""
        # An earlier wrapper of this base may have left its own strength, which nobody said.
        left = vars(self.base).setdefault("_strengths_given", set())
        known = {self.strength_name, FROZEN, *left}
        left.add(self.strength_name)
        for key in group.keys() - self.base.defaults.keys() - known:
            near = difflib.get_close_matches(key, [self.strength_name], cutoff=0.75)
            if near or key in option_names():
                raise InputError(
                    f"a parameter group has {key!r}, which {self.card.name!r} does not look at: "
                    f"groups may have their own {self.strength_name!r}; other options are of the "
                    "whole optimizer"
                )

    def _name_tensors(self) -> list[int]:
        """Ids of the noise streams: by name where names are known, else by position."""
        known: dict[int, str] = {}
        if self.model is not None:
            known = {id(p): name for name, p in self.model.named_parameters()}
        names: list[str] = []
        for group in self.param_groups:
            given = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], given, strict=True):
                names.append(known.get(id(parameter)) or name or f"parameter {len(names)}")
        return tensor_ids(names)

    def _check_state(self, own: dict[str, Any]) -> None:
        mine = {"method": self.card.name, "schedule": describe(self.schedule), **self._options()}
        theirs = {"method": own["method"], "schedule": own["schedule"], **own["options"]}
        for what, ours in mine.items():
            # Where W is kept decides nothing of what is drawn.
            if what != "memory" and theirs.get(what) != ours:
                raise InputError(
                    f"this optimizer state was saved with {what} {theirs.get(what)!r}, but the "
                    f"optimizer has {ours!r}: build it as it was, or delete state['perturb'] to "
                    "start its noise anew"
                )

    def _options(self) -> dict[str, Any]:
        """The method's own options, as plain values: those its constructor names."""
        own = {
            name: getattr(self, name)
            for name, parameter in inspect.signature(type(self)).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name != self.strength_name
        }
        return {name: getattr(value, "name", value) for name, value in own.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Schedulers put a `step` on the instance that is bound to it, so a copy must not carry it.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults


def _check_model(model: Any, base: Optimizer) -> None:
    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be the module that is trained, not {model!r}")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in base.param_groups for p in group["params"]):
        raise InputError(
            f"model= is a {type(model).__name__} that has none of the optimizer's parameters: give "
            "the module that is trained, or leave it out"
        )


def calls_closure(base: Any) -> bool:
    """Whether an optimizer takes its gradients itself, from a closure."""
    return isinstance(base, torch.optim.LBFGS | GNS)


def _check_base(base: Any, takes_closures: bool) -> None:
    name = type(base).__name__
    if not isinstance(base, Optimizer):
        raise InputError(
            f"the base optimizer must be a torch optimizer, not {name}: "
            "flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=1e-4), sigma=0.01)"
        )
    if isinstance(base, Wrapper):
        raise InputError(f"{name} already wraps a base optimizer: wrap {name}'s own base instead")
    if calls_closure(base) and not takes_closures:
        raise InputError(f"{name} calls its closure itself, so its gradients cannot be perturbed")
    if not any(p.requires_grad for group in base.param_groups for p in group["params"]):
        raise InputError(
            "no trainable parameters: every parameter of the optimizer has requires_grad=False"
        )
