"""The snippets on the pages of objectives with a memory run as they are written."""

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs/methods"


@pytest.mark.parametrize("page", ["elr", "ps-kd"])
def test_the_snippets_of_a_page_run_in_their_order(page, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    assert len(snippets) >= 2
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    assert names["loss"].memory.rows.any(1).all()
    if page == "ps-kd":
        assert capsys.readouterr().out == "2400\n"
