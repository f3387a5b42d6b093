"""Names with options in brackets: `mixup(alpha=0.4)`."""

from __future__ import annotations

from typing import Any

from flatminima.errors import InputError


def parse_brackets(asked: str) -> tuple[str, dict[str, Any]]:
    """What users write for an objective, a reparametrization or a data set with options.

    Brackets, since the options of a method of a comparison stand between colons:
    `nso:objective=mixup(alpha=0.4)`.

    Returns:
        Its name, and its options as numbers, truth values or words.

    Raises:
        InputError: brackets that do not close, several names, an option without "=", or one given
            twice.
    """
    name, opened, rest = asked.strip().partition("(")
    if ")" in rest[:-1]:
        raise InputError(f"{asked!r}: write one name, and its options as name(option=value)")
    if opened and not rest.endswith(")"):
        raise InputError(f"{asked!r}: write options as name(option=value), not {asked!r}")
    chosen: dict[str, Any] = {}
    for setting in filter(None, rest.removesuffix(")").split(";")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"{asked!r}: write options as name(option=value), not {setting!r}")
        if key.strip() in chosen:
            raise InputError(f"{asked!r} sets {key.strip()} twice: leave one out")
        chosen[key.strip()] = literal(value.strip())
    return name.strip(), chosen


def literal(word: str) -> Any:
    """A word as the truth value or number that it is, if it is one."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word
