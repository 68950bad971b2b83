"""A browser for pages: the system's Chromium, without a screen."""

import shutil

import pytest

from tests.threads import LIMIT_S

DRAWN = "html[data-drawn]"
LIMIT_MS = 1e3 * LIMIT_S  # of every wait for a page
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

CUT = """width => {
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  return [...document.querySelectorAll("body *")].filter((each) =>
    each.getBoundingClientRect().right > width + 1 && !each.closest(".chart, option"))
    .map((each) => each.tagName + " " + each.textContent.slice(0, 40));
}"""
"""What reaches beyond the right edge of the window, with everything unfolded."""


@pytest.fixture(scope="module")
def chromium():
    """A browser of Playwright; each test opens pages of its own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]  # no process that draws in a GPU's place
        browser = playwright.chromium.launch(executable_path=path, args=options, timeout=LIMIT_MS)
        yield browser
        browser.close()


class Visit:
    """A page in a window, with what went wrong in it."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(LIMIT_MS)
        self.page = self.context.new_page()
        self.requests = []
        self.troubles = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.troubles.append(said.text) if said.type == "error" else None,
        )

    def open(self, url):
        """Go there, and return the page once its charts are drawn."""
        self.page.goto(url)
        self.page.locator(DRAWN).wait_for(state="attached")  # polling needs what the pages forbid
        return self.page

    def cut(self, width):
        """What of the page reaches beyond the right edge of a window of this width."""
        self.page.set_viewport_size({"width": width, "height": 700})
        self.page.wait_for_function("width => innerWidth === width", arg=width)
        self.page.evaluate("new Promise(end => requestAnimationFrame(() => setTimeout(end)))")
        cut = self.page.evaluate(CUT, width)
        whole = self.page.evaluate("document.scrollingElement.scrollWidth")
        return cut if whole <= width else [*cut, f"the page is {whole} wide"]


@pytest.fixture
def visit(chromium):
    """Makes windows: `visit(viewport=..., color_scheme=...)`."""
    visits = []

    def make(**options):
        visits.append(Visit(chromium, **options))
        return visits[-1]

    yield make
    for each in visits:
        each.context.close()
