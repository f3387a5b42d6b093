"""How a question is put to a language model, and how its answer is read."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

PHRASE = "The answer is"
"""What announces the answer, in what is trained on and in what is generated."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|(?<![\d.])\.\d+)")
_OPTION = re.compile(r"\b[a-z]\b")
_IN_BRACKETS = re.compile(r"\([a-z]\)")
_YES_NO = re.compile(r"\b(?:yes|no)\b")


def prompt(question: str) -> str:
    """What the model is given."""
    return f"Q: {question}\nA:"


def completion(rationale: str, answer: str) -> str:
    """What it is to continue with; without a rationale, the answer at once."""
    steps = f" {rationale}" if rationale else ""
    return f"{steps} {PHRASE} {answer}."


def normalized(answer: str) -> str:
    """An answer such that equal ones are the same text.

    Numbers lose separators of thousands, signs of currency, "%" and zeros at the end; all else is
    in lower case, without space, brackets and full stops about it.
    """
    text = " ".join(answer.lower().split())
    # A point before a number is part of it.
    return _as_number(text.strip(" ()$%").rstrip(" .()$%")) or text.strip(" .()$%")


def parse(generated: str, wanted: str) -> str | None:
    """The answer that a generated text gives, normalized; None where it gives none.

    It is what follows the last "The answer is" on its line, in the form of the wanted answer: the
    first number where that is a number, the first "yes" or "no" where it is one of them, the first
    letter in brackets, or on its own, where it is a letter (options), else all up to a full stop,
    or as many sentences as the wanted answer has: "St. Louis" counts as two.
    """
    place = generated.lower().rfind(PHRASE.lower())
    lines = generated[place + len(PHRASE) :].strip().splitlines() if place >= 0 else []
    if not lines:
        return None
    text, form = lines[0].lower(), normalized(wanted)
    for is_form, pattern in (
        (_as_number(form) is not None, _NUMBER),
        (form in ("yes", "no"), _YES_NO),
        (len(form) == 1 and _IN_BRACKETS.search(text) is not None, _IN_BRACKETS),
        (len(form) == 1, _OPTION),
    ):
        if is_form:
            found = pattern.search(text)
            return normalized(found.group()) if found else None
    sentences = text.split(". ")[: 1 + form.count(". ")]
    return normalized(". ".join(sentences)) or None


def _as_number(text: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None
    return f"{number.normalize() + 0:f}"
