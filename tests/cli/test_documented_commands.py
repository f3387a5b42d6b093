"""The commands that the pages show are commands."""

import re
import shlex
from pathlib import Path

import pytest

from flatminima.cli import _parser, flags
from flatminima.errors import InputError
from flatminima.training.checks import check_method

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page):
    """What stands in the page's blocks of code, continued lines joined, as arguments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(text for kind, text in blocks if kind in ("", "bash", "sh"))
    ours = re.findall(r"^flatminima .*$", lines.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in ours]


def test_the_pages_show_many():
    assert sum(len(commands(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse_as_they_stand(page, capsys):
    for command in commands(page):
        try:
            _parser().parse_args(command)
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda p: p.stem)
def test_what_a_method_is_called_with_is_in_range_and_for_its_data(page):
    for command in commands(page):
        if command[0] != "finetune" or "--recipe" in command:
            continue
        arguments = _parser().parse_args(command)
        recipe = flags.recipe_from(arguments)
        try:
            check_method(recipe, recipe.perturb.perturb)
        except InputError as error:
            pytest.fail(f"{shlex.join(command)}: {error}")
