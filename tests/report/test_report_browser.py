"""The page in a real browser: `make test-browser`, with Chromium on the PATH."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

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
