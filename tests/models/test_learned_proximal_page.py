"""The page of learned proximal networks: its snippets run as written."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/methods/learned-proximal-networks.md"


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_a_snippet_of_the_page_runs(snippet):
    pytest.importorskip("sklearn")
    exec(compile(snippet, str(PAGE), "exec"), {})
