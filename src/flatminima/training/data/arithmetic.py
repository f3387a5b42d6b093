"""Arithmetic in several steps, whose answer needs the steps in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import Raw
from flatminima.training.data.rationales import examples_of
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

MODULUS = 5
SETTING: dict[str, int | bool] = {
    "steps": 4,
    "train": 200,
    "validation": 100,
    "test": 500,
    "source": 1000,
    "rationales": True,
}
Triple = tuple[str, str, str]


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Problems such as `3+4*2+1`, worked from left to right modulo 5.

    The rationale of `3+4*2+1` is `3+4=2 2*2=4 4+1=0` and its answer 0. A problem starts with a
    digit from 0 to 4; each step adds one, or multiplies by one from 1 to 4, as often. Every step is
    one-to-one, so the answer is uniform whatever all steps but the start are, and a guess is right
    once in 5. No problem is in two parts.

    `source` has problems of 1 to `steps` steps, as many of each, with their answers and no
    rationales: a model pretrained on it knows the form, and the results of single steps.

    Written `arithmetic(steps=4;train=200;validation=100;test=500;source=1000;rationales=true)`;
    these are the defaults. Without rationales the same problems have their answers alone.

    Raises:
        InputError: an option that there is not, a size that is no positive whole number, or more
            problems than there are.
    """
    setting = setting_of(spec.data)
    steps = int(setting["steps"])
    progress("drawing problems", 0, 1)
    numbers = stream(seed, "arithmetic")
    seen: set[str] = set()
    with_steps = bool(setting["rationales"])
    splits = {
        part: examples_of(
            [_new(numbers, steps, seen, with_steps) for _ in range(int(setting[part]))]
        )
        for part in ("train", "validation", "test")
    }
    lengths = [1 + number % steps for number in range(int(setting["source"]))]
    source = [_direct(_unlike(numbers, length, seen)) for length in lengths]
    progress("drawing problems", 1, 1)
    return Raw(
        name="arithmetic",
        kind="text",
        classes=(),
        splits=splits,
        source=examples_of(source) if source else None,
        details={"modulus": MODULUS, "chance": 1 / MODULUS, **setting},
        task="rationales",
    )


def problem(numbers: np.random.Generator, steps: int) -> Triple:
    """A question, its steps and its answer."""
    value = int(numbers.integers(MODULUS))
    question, worked = str(value), []
    for _ in range(steps):
        sign = "+*"[int(numbers.integers(2))]
        operand = int(numbers.integers(1 if sign == "*" else 0, MODULUS))
        result = (value + operand if sign == "+" else value * operand) % MODULUS
        question += f"{sign}{operand}"
        worked.append(f"{value}{sign}{operand}={result}")
        value = result
    return question, " ".join(worked), str(value)


def _new(numbers: np.random.Generator, steps: int, seen: set[str], with_steps: bool) -> Triple:
    """A problem that no part has yet."""
    found = _unlike(numbers, steps, seen)
    seen.add(found[0])
    return found if with_steps else _direct(found)


def _direct(found: Triple) -> Triple:
    question, _, answer = found
    return question, "", answer


def _unlike(numbers: np.random.Generator, steps: int, seen: set[str]) -> Triple:
    while True:
        found = problem(numbers, steps)
        if found[0] not in seen:
            return found


def setting_of(asked: str) -> dict[str, Any]:
    """The options in brackets, those that are left out as by default.

    Raises:
        InputError: as `load`.
    """
    _, given = parse_brackets(asked)
    for name, value in given.items():
        if name not in SETTING:
            raise unknown("option of arithmetic", name, SETTING)
        if name == "rationales":
            if not isinstance(value, bool):
                raise InputError(f"arithmetic's rationales is {value!r}: give true or false")
        elif not isinstance(value, int) or isinstance(value, bool) or value < (name != "source"):
            raise InputError(f"arithmetic's {name} is {value!r}: give a positive whole number")
    setting = {**SETTING, **given}
    wanted = sum(int(setting[part]) for part in ("train", "validation", "test"))
    there_are = MODULUS * (2 * MODULUS - 1) ** int(setting["steps"])
    if 2 * wanted > there_are:
        raise InputError(
            f"there are {there_are} problems of {setting['steps']} steps, and half of them at most "
            f"can be asked for, not {wanted}: take more steps, or fewer of train, validation and "
            "test"
        )
    return setting
