"""A recipe: everything that decides how one run goes, as plain values.

A recipe file is a flat YAML mapping whose keys are the flags of the command line with underscores
for dashes. This file imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from flatminima.errors import InputError, require, unknown
from flatminima.training.brackets import literal
from flatminima.training.data.spec import DataSpec
from flatminima.training.specs import (
    SECTIONS,
    LoopSpec,
    MeasureSpec,
    ModelSpec,
    ObjectiveSpec,
    OptimizerSpec,
    PerturbSpec,
    ReparamSpec,
    TuneSpec,
)


@dataclass(frozen=True)
class Recipe:
    """All of one run, in sections whose fields have names of their own throughout.

    Raises:
        InputError: a value out of its range, named by its flag.
    """

    data: DataSpec = field(default_factory=DataSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    reparam: ReparamSpec = field(default_factory=ReparamSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    perturb: PerturbSpec = field(default_factory=PerturbSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    loop: LoopSpec = field(default_factory=LoopSpec)
    tune: TuneSpec = field(default_factory=TuneSpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)

    def __post_init__(self) -> None:
        for section in (
            self.model,
            self.perturb,
            self.optimizer,
            self.loop,
            self.tune,
            self.measure,
        ):
            _check_choices(section)
        _at_least("input_noise", self.objective.input_noise, 0)
        _at_least("tune_lr", self.tune.tune_lr, 0, most=1e30)
        _at_least("tune_entropy", self.tune.tune_entropy, 0)
        _at_least("tune_every", self.tune.tune_every, 1)
        _at_least("tune_warmup", self.tune.tune_warmup, 0, most=1)
        _at_least("tune_trials", self.tune.tune_trials, 2)
        _at_least("sigma", self.perturb.sigma, 0)
        _at_least("rho", self.perturb.rho, 0)
        _at_least("num_perturbations", self.perturb.num_perturbations, 1)
        _at_least("clean_weight", self.perturb.clean_weight, 0, most=1)
        _at_least("lr", self.optimizer.lr, 0, most=1e30)
        _at_least("seed", self.loop.seed, 0, most=2**63 - 1)
        _at_least("lr_step", self.optimizer.lr_step, 1)
        _at_least("momentum", self.optimizer.momentum, 0, most=1)
        _at_least("weight_decay", self.optimizer.weight_decay, 0)
        _at_least("warmup", self.optimizer.warmup, 0, most=1)
        _at_least("average_from", self.loop.average_from, 0, most=1)
        _at_least("ema_decay", self.loop.ema_decay, 0, most=1)
        _at_least("swa_lr", self.loop.swa_lr, 0, most=1e30)
        _at_least("max_grad_norm", self.optimizer.max_grad_norm, 1e-30)
        if self.optimizer.amsgrad and self.optimizer.optimizer not in (None, "adam", "adamw"):
            raise InputError(
                f"--amsgrad is for adam and adamw, and --optimizer is {self.optimizer.optimizer}: "
                "leave one out"
            )
        for name in ("epochs", "batch_size", "micro_batch_size", "early_stopping", "save_every"):
            _at_least(name, getattr(self.loop, name), 1)
        _at_least("validate_every", self.loop.validate_every, 1)
        _at_least("live_trace_every", self.loop.live_trace_every, 1)
        for name in ("probes", "draws"):
            _at_least(name, getattr(self.measure, name), 2)
        _at_least("measure_every", self.measure.measure_every, 1)
        _at_least("measure_samples", self.measure.measure_samples, 1)
        _at_least("measure_sigma", self.measure.measure_sigma, 0)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from one flat mapping; what is missing keeps its default.

        Raises:
            InputError: a key that is no field of a recipe, or a value of the wrong type.
        """
        hints = option_types()
        sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for name, value in values.items():
            if name == "seeds":
                raise InputError("the recipe key 'seeds' is for `flatminima compare`: leave it out")
            if name not in hints:
                raise unknown("recipe key", name, hints)
            section, kind = hints[name]
            sections[section][name] = _cast(name, value, kind)
        return cls(**{section: SECTIONS[section](**sections[section]) for section in SECTIONS})

    def flat(self) -> dict[str, Any]:
        """One flat mapping of all fields."""
        return {name: value for section in asdict(self).values() for name, value in section.items()}

    def but(self, **changes: Any) -> Recipe:
        """A copy with some fields changed, by their flat names."""
        return Recipe.from_flat({**self.flat(), **changes})

    def resolved(self, family: str, random_weights: bool, base: str = "") -> Recipe:
        """The recipe with the defaults filled in that depend on the model.

        Args:
            family: "builtin" or "transformers".
            random_weights: Whether the model starts from random weights.
            base: The optimizer that the method needs, "" for any.
        """
        small = family == "builtin"
        optimizer = self.optimizer.optimizer or base or ("sgd" if small else "adamw")
        rate = 0.05 if small else 5e-4 if random_weights else 5e-5
        rate = {"variational-adam": 0.3, "gns": 1.0}.get(optimizer, rate)
        sigma = 0.1 if small else 0.01
        late = {
            "sigma": sigma,
            "rho": 0.1 if small else 0.05,
            "optimizer": optimizer,
            "lr": rate,
            "epochs": 60 if small else 20 if random_weights else 5,
            "measure_sigma": sigma,
            "measure_samples": 1000 if small else 128,
            "probes": 100 if small else 20,
            "draws": 100 if small else 20,
        }
        given = self.flat()
        return self.but(**{name: v for name, v in late.items() if given[name] is None})


def option_types() -> dict[str, tuple[str, Any]]:
    """The section and the type of each field, by its flat name."""
    return {
        f.name: (section, get_type_hints(cls)[f.name])
        for section, cls in SECTIONS.items()
        for f in fields(cls)
    }


def parse_method(asked: str) -> tuple[str, dict[str, Any]]:
    """A method as users write it, with options: `nso`, `nso:sigma=0.1:noise=laplace`.

    Returns:
        Its name, and its options as numbers, truth values or words.

    Raises:
        InputError: a setting without "=", or one given twice.
    """
    name, *settings = asked.split(":")
    chosen: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"{asked!r}: write options as name:option=value, not {setting!r}")
        if key in chosen:
            raise InputError(f"{asked!r} sets {key} twice: leave one out")
        chosen[key] = literal(value)
    return name, chosen


def read(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file.

    Raises:
        InputError: no such file, or it is not a flat YAML mapping.
    """
    yaml = require("yaml", "cli")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
    except RecursionError as error:
        raise InputError(f"the recipe {path} is nested too deeply: it is a flat mapping") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is no text in UTF-8: save it as that") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"the recipe {path}" if mark is None else f"{path}, line {mark.line + 1}"
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        if mark is not None and getattr(error, "context_mark", None) is not None:
            what += f", {error.context} in line {error.context_mark.line + 1}"
        if "\\t" in what:
            what += "; indent by spaces, not by tabs"
        raise InputError(f"{where}: not valid YAML: {what}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"the recipe {path} must be a mapping of names to values, as `lr: 0.05`")
    return content


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, its sections under comments."""
    yaml = require("yaml", "cli")
    parts = []
    for section, values in asdict(recipe).items():
        parts.append(f"# {section}\n" + yaml.safe_dump(values, sort_keys=False))
    return "\n".join(parts)


def _cast(name: str, value: Any, kind: Any) -> Any:
    """A value as the field's type; words from the command line and YAML's `1e-4` become numbers."""
    choices = get_args(kind) or (kind,)
    if value is None or (value == "none" and type(None) in choices and str not in choices):
        if type(None) in choices:
            return None
        raise InputError(f"{flag(name)} needs a value")
    if bool in choices:
        words = {"true": True, "false": False, "yes": True, "no": False}
        known = value if isinstance(value, bool) else words.get(str(value).lower())
        if known is None:
            raise InputError(f"{flag(name)} is {value!r}: give true or false")
        return known
    for number in (int, float):
        if number in choices:
            try:
                if isinstance(value, bool):
                    raise ValueError
                return _whole(value) if number is int else number(value)
            except (TypeError, ValueError, OverflowError):
                what = "a whole number" if number is int else "a number"
                raise InputError(f"{flag(name)} is {value!r}: give {what}") from None
    if isinstance(value, list | tuple | Mapping):
        raise InputError(f"{flag(name)} is {value!r}: give one value")
    return str(value)


def _whole(value: Any) -> int:
    if isinstance(value, float) or (isinstance(value, str) and not value.strip("+-").isdigit()):
        if float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    return int(value)


def _check_choices(section: Any) -> None:
    for name, kind in get_type_hints(type(section)).items():
        value = getattr(section, name)
        choices = literals(kind)
        if choices and value is not None and value not in choices:
            raise unknown(f"value of {flag(name)}", value, choices)


def literals(kind: Any) -> list[Any]:
    """The choices of a field, empty where it has none."""
    if getattr(kind, "__origin__", None) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in literals(part)]


def _at_least(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not least <= value <= most:
        bound = f"at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise InputError(f"{flag(name)} is {value!r}: it must be finite and {bound}")


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")
