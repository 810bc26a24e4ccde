"""The page in a real browser: `make test-browser`, with Chromium on the PATH."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from example_results import ablations, results

from mmsurgery.artifacts.files import write_json
from mmsurgery.provenance import seal
from mmsurgery.report import write_report
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail("there is no Chromium on the PATH; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        # pages of the test alone are opened, and a container's root has no sandbox
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


class Visit:
    """A page that was opened offline, with what it asked for and complained about."""

    def __init__(self, browser: Browser, workspace: Workspace, **context: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.address = write_report(workspace).path.as_uri()
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.address)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_offline_and_fits(browser: Browser, full: Workspace, width: int, scheme: str) -> None:
    visit = Visit(browser, full, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    assert visit.requests == [visit.address]
    assert visit.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for place in ("h1", "#experiment-1 table", "#experiment-1 svg.curves", "#scores table", "#masks svg.heat"):
        box = page.locator(place).first.bounding_box()
        assert page.locator(place).first.is_visible(), place
        assert box is not None
        assert box["width"] > 30, place
        assert box["x"] >= 0, place
    ink, paper = page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    # every text of a chart can be read
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 7
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_fits_and_is_quiet(browser: Browser, pictured: Workspace, width: int, scheme: str) -> None:
    """Forget ratios, sweeps, deviations, cases with a picture: all folds open, nothing wider than the window."""
    figure4 = results("figure4", ("llava",), 1, ratios=(5, 10, 15))
    write_json(pictured.path("experiments", "figure4", "results.json"), figure4)
    ablated = results("ablations", ("llava",), 1, ablations())
    write_json(pictured.path("experiments", "ablations", "results.json"), ablated)
    visit = Visit(browser, pictured, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in visit.requests if not url.startswith("data:image/png;base64,")] == [visit.address]
    assert visit.complaints == []
    for place in (
        ".ratios .multiples svg",
        ".multiples .one svg",
        ".deviations svg.heat",
        ".outcome",
        ".case img",
        ".claims li",
    ):
        box = page.locator(place).first.bounding_box()
        assert box is not None, place
        assert box["width"] > 30, place
        assert 0 <= box["x"] <= width - box["width"], place
    assert page.locator(".case img").evaluate("image => image.naturalWidth") == 256
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 7
    # words of a mark stand out from the paper they are on: 3 to 1 at least
    assert page.evaluate(CONTRAST) >= 3
    visit.context.close()


CONTRAST = """() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((each) => each / 255);
    const [r, g, b] = parts.map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.querySelector('.case')).backgroundColor);
  return Math.min(...[...document.querySelectorAll('.mark')].map((mark) => {
    const ink = light(getComputedStyle(mark).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
}"""


def test_a_heatmap_answers_by_keyboard_and_pointer(browser: Browser, pictured: Workspace) -> None:
    visit = Visit(browser, pictured, viewport={"width": 1280, "height": 900})
    page = visit.page
    grid = page.locator(".deviations .of-share svg.heat").nth(2)  # the language model's
    line = page.locator(".deviations p.told.of-share").first
    assert grid.get_attribute("role") == "grid"
    assert grid.locator("[role=row] [role=gridcell]").count() == 4 * 8 + 2
    assert line.inner_text() == ""
    grid.focus()
    first = line.inner_text()
    assert re.fullmatch(r"lm\.0, attn\.q: [\d.]+ % of 18,432 weights", first)
    assert grid.locator(".cursor").is_visible()
    said = []
    for key in ("ArrowDown", "ArrowRight", "End", "Home", "ArrowUp", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        said.append(line.inner_text().partition(":")[0])
        active = page.locator(f"[id='{grid.get_attribute('aria-activedescendant')}']")
        assert active.get_attribute("aria-label") == line.inner_text()
    assert said == ["lm.0, attn.k", "lm.1, attn.k", "lm.3, attn.k", "lm.0, attn.k"] + ["lm.0, attn.q"] * 3
    page.keyboard.press("Tab")
    assert not grid.locator(".cursor").count()
    assert line.inner_text() == ""
    grid.locator(".cells rect").nth(9).hover()
    assert line.inner_text().startswith("lm.1, attn.v: ")
    assert grid.locator(".cursor").is_visible()
    page.mouse.move(0, 0)
    assert line.inner_text() == ""
    assert visit.complaints == []
    visit.context.close()


def test_what_a_cell_says_is_in_view_on_a_phone(browser: Browser, pictured: Workspace) -> None:
    """The line stands below all the maps of a row, which do not fit on the screen together."""
    visit = Visit(browser, pictured, viewport={"width": 390, "height": 420}, has_touch=True)
    page = visit.page
    page.locator(".deviations .of-share svg.heat .cells rect").first.tap()
    line = page.locator(".deviations p.told.of-share").first
    assert line.inner_text().startswith("vision.0, attn.q: ")
    box = line.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 420
    visit.context.close()


@pytest.mark.parametrize("script", [True, False])
def test_share_and_relative_are_switched(browser: Browser, pictured: Workspace, script: bool) -> None:
    visit = Visit(browser, pictured, java_script_enabled=script)
    page = visit.page
    share, relative = (page.locator(f".heats.of-{kind}").first for kind in ("share", "relative"))
    assert share.is_visible()
    assert not relative.is_visible()
    page.get_by_text("Relative", exact=True).last.click()
    assert not share.is_visible()
    assert relative.is_visible()
    page.keyboard.press("ArrowLeft")
    assert share.is_visible()
    visit.context.close()


FADE = """wide => {
  const fade = getComputedStyle(wide, '::after');
  return [wide.scrollWidth - wide.clientWidth, fade.position, fade.right, parseFloat(fade.width)];
}"""


def test_a_table_wider_than_the_window_fades_at_its_edge(browser: Browser, empty: Workspace) -> None:
    """Seven columns of bars fit a screen; on a phone they scroll, and their edge says so."""
    record = results(backbones=("llava",), seeds=1)
    for entry in record["summary"]["llava"].values():
        shares = entry["outcomes"] and entry["outcomes"]["forget_vqa"]
        entry["outcomes"] = shares and dict.fromkeys([*record["columns"], "test_vqa"], shares)
    write_json(empty.path("experiments", "table1", "results.json"), seal(record))
    for width, over in ((1280, False), (390, True)):
        visit = Visit(browser, empty, viewport={"width": width, "height": 900})
        wide = visit.page.locator(".wide:has(> table.outcomes)").first
        more, position, right, size = wide.evaluate(FADE)
        assert (more > 0) == over, (width, more)
        assert (position, right) == ("sticky", "0px")
        assert size > 20
        bars = wide.locator(".outcome")
        assert bars.count() == 6 * 7
        assert min(bar.bounding_box()["width"] for bar in bars.all()[:7]) > 75  # type: ignore[index]
        visit.context.close()


def test_a_number_leads_to_its_provenance(browser: Browser, full: Workspace) -> None:
    visit = Visit(browser, full, viewport={"width": 1280, "height": 900})
    page = visit.page
    number = page.locator("#experiment-1 table.results a.from").first
    underlined = "link => getComputedStyle(link).textDecorationLine"
    assert number.evaluate(underlined) == "none"
    number.hover()
    assert number.evaluate(underlined) == "underline"
    number.click()
    page.wait_for_function("location.hash !== ''")
    assert page.locator(page.evaluate("location.hash")).get_attribute("open") is not None
    visit.context.close()


def test_groups_keep_their_headings_when_sorted(browser: Browser, empty: Workspace) -> None:
    write_json(empty.path("experiments", "ablations", "results.json"), results("ablations", ("llava",), 1, ablations()))
    visit = Visit(browser, empty, viewport={"width": 1280, "height": 900})
    body = visit.page.locator("table.results tbody").nth(1)

    def order() -> list[str]:
        return [text.split("\n")[0] for text in body.locator("th").all_inner_texts()]

    assert order() == ["Beta", "beta 0.25", "beta 0.5", "beta 2", "beta 4", "beta 8"]
    visit.page.get_by_role("button", name="Row").first.click()
    visit.page.get_by_role("button", name="Row").first.click()
    assert order() == ["Beta", "beta 8", "beta 4", "beta 2", "beta 0.5", "beta 0.25"]
    visit.context.close()


def test_tables_sort_legends_hide_links_open(browser: Browser, full: Workspace) -> None:
    visit = Visit(browser, full, viewport={"width": 1280, "height": 900})
    page = visit.page

    def order() -> list[str]:
        return [text.split("\n")[0] for text in page.locator("#scores tbody th").all_inner_texts()]

    assert order() == ["vanilla", "gold", "npo"]
    button = page.get_by_role("button", name="Forget VQA").last
    button.click()
    assert order() == ["vanilla", "npo", "gold"]  # 100, 50, 25 %
    button.click()
    assert order() == ["gold", "npo", "vanilla"]

    curve = page.locator("#experiment-1 svg.curves .series").first
    assert curve.is_visible()
    page.locator("#experiment-1 .legend button").first.click()
    assert not curve.is_visible()

    link = page.locator("#masks a.source").first
    target = page.locator(str(link.get_attribute("href")))
    assert target.get_attribute("open") is None
    link.click()
    page.wait_for_function("location.hash !== ''")
    assert target.get_attribute("open") is not None
    assert visit.complaints == []
    visit.context.close()


def test_everything_can_be_read_without_script(browser: Browser, full: Workspace) -> None:
    visit = Visit(browser, full, java_script_enabled=False)
    assert visit.page.locator("#scores table").is_visible()
    assert visit.page.get_by_role("button").count() == 0
    assert visit.page.locator("svg.heat .cells title").count() > 100
    visit.context.close()


def test_policy_stops_foreign_script(browser: Browser, full: Workspace) -> None:
    """If text ever became markup, the browser would still not run it."""
    path = write_report(full).path
    path.write_text(path.read_text().replace("</main>", "<script>document.title = 'foreign'</script></main>"))
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.title() != "foreign"
    context.close()
