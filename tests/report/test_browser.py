"""The page in a real browser: it draws, sorts, turns, prints, and complains of nothing."""

import shutil
from pathlib import Path

import pytest

from flatminima.report import write_report

sync_api = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: `make browser` installs one")

# Drawn in 3-D without a graphics card.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

DRAWN = """() => [...document.querySelectorAll("[data-figure]")]
    .filter((canvas) => !canvas.closest("[hidden]"))
    .every((canvas) => canvas.querySelector(".main-svg, canvas"))"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser, study, tmp_path):
    """Opens the report of the full study, and fails the test for what the page complains of."""
    complaints: list[str] = []
    opened = []

    def open_(**settings):
        write_report([study], tmp_path / "report.html")
        page = browser.new_page(**settings)
        opened.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_
    for page in opened:
        page.close()
    assert complaints == []


def draw_all(page) -> None:
    for canvas in page.locator("[data-figure]:visible").all():
        canvas.scroll_into_view_if_needed()
    page.wait_for_function(DRAWN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_with_a_size(open_page, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    for tab in (None, "by gradients", "surface"):
        if tab is not None:
            page.get_by_role("tab", name=tab).click()
        draw_all(page)
        for canvas in page.locator("[data-figure]:visible .svg-container").all():
            box = canvas.bounding_box()
            assert box["width"] > 200
            assert box["height"] > 100
    assert not page.locator(".failed").count()
    assert page.locator("[data-figure] .svg-container").count() == (
        page.locator("[data-figure]").count()
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_first_screen_answers(open_page):
    page = open_page(viewport={"width": 1280, "height": 800})
    for words in ("nso wins", "gain over plain", "Hessian trace", "gradients"):
        box = page.get_by_text(words).first.bounding_box()
        assert box["y"] + box["height"] < 800


def test_the_table_sorts_by_number_both_ways(open_page):
    page = open_page()
    table = page.locator("#outcomes table")
    head = table.get_by_role("button", name="test accuracy (%)").first

    def rows():
        return table.locator("tbody th").all_inner_texts()

    assert rows() == ["plain", "nso", "sam"]
    head.click()
    assert rows() == ["nso", "sam", "plain"]
    assert head.locator("xpath=..").get_attribute("aria-sort") == "descending"
    head.press("Enter")
    assert rows() == ["plain", "sam", "nso"]


def test_tabs_answer_to_the_keyboard(open_page):
    page = open_page()
    contour = page.get_by_role("tab", name="contour")
    contour.focus()
    page.keyboard.press("ArrowRight")
    surface = page.get_by_role("tab", name="surface")
    assert surface.get_attribute("aria-selected") == "true"
    assert surface.evaluate("tab => tab === document.activeElement")
    assert page.get_by_role("tabpanel", name="surface").is_visible()
    assert not page.get_by_role("tabpanel", name="contour").is_visible()


def test_the_surface_turns_with_the_mouse(open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    page.get_by_role("tab", name="surface").click()
    draw_all(page)
    canvas = page.get_by_role("tabpanel", name="surface").locator("[data-figure]").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    eye = "c => JSON.stringify(c._fullLayout.scene._scene.getCamera().eye)"
    before = canvas.evaluate(eye)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 30, steps=6)
    page.mouse.up()
    page.wait_for_timeout(300)
    assert canvas.evaluate(eye) != before


def test_the_theme_changes_and_figures_follow(open_page):
    page = open_page(color_scheme="light")
    draw_all(page)
    ink = "() => getComputedStyle(document.querySelector('.xtick text')).fill"
    before = page.evaluate(ink)
    page.get_by_role("button", name="Dark").click()
    page.wait_for_function(f"({ink})() !== '{before}'")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_printed_page_fits_and_has_all_figures(open_page, tmp_path):
    page = open_page(viewport={"width": 1280, "height": 900})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(DRAWN)
    page.emulate_media(media="print")
    # A4 at 96 dots an inch, less the margins.
    page.set_viewport_size({"width": 720, "height": 1000})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    file = tmp_path / "report.pdf"
    page.pdf(path=str(file), format="A4")
    assert Path(file).stat().st_size > 50_000


def test_words_in_figures_that_look_like_markup_are_shown_as_they_are(browser, tmp_path):
    from report.conftest import write_study

    folder = write_study(tmp_path / "study", {"plain": 0.5, "<b>nso</b>": 0.6}, seeds=2)
    write_report([folder], tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    draw_all(page)
    ticks = page.locator(".ytick text").all_text_contents()
    assert "<b>nso</b>" in ticks
    page.close()


def test_a_run_alone_opens_without_complaints(browser, tmp_path):
    from report.conftest import write_run

    write_run(tmp_path / "run", "nso", 0, 0.8)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    complaints = []
    page = browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    draw_all(page)
    page.close()
    assert complaints == []


def test_the_surface_turns_with_the_arrow_keys_and_stays_turned(open_page):
    page = open_page(color_scheme="light", viewport={"width": 1280, "height": 900})
    page.get_by_role("tab", name="surface").click()
    draw_all(page)
    canvas = page.get_by_role("tabpanel", name="surface").locator("[data-figure]").first
    eye = "c => JSON.stringify(c._fullLayout.scene._scene.getCamera().eye)"
    before = canvas.evaluate(eye)
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    turned = canvas.evaluate(eye)
    assert turned != before
    page.get_by_role("button", name="Dark").click()
    page.wait_for_timeout(500)
    assert canvas.evaluate(eye) == turned
