"""The pages in a real browser, without a window: Chromium, driven through selenium.

Skipped where one of them is missing. With ``SSL_AXE=.../axe.min.js`` (axe-core of npm) pages are
also checked for accessibility by axe.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ssl_lightning import publishing
from ssl_lightning.report.html import write_run_page
from test_html_report import write_run
from test_report import make_report
from zoo_runs import ENTRIES, NAME, OTHER, ZOO

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
AXE = os.environ.get("SSL_AXE", "")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(DRIVER is None, reason="no chromedriver is installed"),
]
WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The zoo's page, and a run's."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_run(folder / "run")
    return {
        "zoo": publishing.write_site(folder / "zoo.html", ZOO),
        "run": write_run_page(make_report(), run / "report.html", run),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    folder = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def show(browser, path, width=1440, scheme="light"):
    """Open a page from its file."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    browser.get("about:blank")
    browser.get(f"file://{path}")


def screenshot(browser):
    """The whole page as a picture."""
    size = browser.execute_script(
        "const r = document.documentElement; return [r.clientWidth, r.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 8000), "scale": 1}
    taken = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    return Image.open(io.BytesIO(base64.b64decode(taken["data"])))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["zoo", "run"])
def test_a_page_fits_loads_nothing_and_says_no_error(browser, pages, name, width, scheme, tmp_path):
    show(browser, pages[name], width, scheme)
    assert browser.get_log("browser") == []
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    wide, seen = browser.execute_script(
        "const r = document.documentElement; return [r.scrollWidth, r.clientWidth]"
    )
    assert wide <= seen <= width
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    taken = screenshot(browser).convert("L")
    taken.save(tmp_path / f"{name}-{width}-{scheme}.png")
    ground = taken.getpixel((1, 1))
    assert (ground > 200) if scheme == "light" else (ground < 60)
    assert len(taken.getcolors(256)) > 20


def column(browser, table, number):
    """Texts of a column, of rows that are shown."""
    return browser.execute_script(
        "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
        ".filter((row) => row.offsetParent !== null)"
        ".map((row) => row.cells[arguments[1]].textContent.trim())",
        table,
        number,
    )


def head(browser, table, number):
    return browser.execute_script(
        "return document.getElementById(arguments[0]).tHead.rows[0].cells[arguments[1]]",
        table,
        number,
    )


def test_columns_are_sorted_both_ways_with_the_keyboard_too(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["zoo"])
    button = head(browser, "zoo-table", 3).find_element("tag name", "button")
    button.click()
    errors = [float(text) for text in column(browser, "zoo-table", 3)]
    assert errors == sorted(errors)
    assert len(errors) == len(ENTRIES)
    assert head(browser, "zoo-table", 3).get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    errors = [float(text) for text in column(browser, "zoo-table", 3)]
    assert errors == sorted(errors, reverse=True)
    assert head(browser, "zoo-table", 3).get_attribute("aria-sort") == "descending"
    head(browser, "zoo-table", 0).find_element("tag name", "button").click()
    assert column(browser, "zoo-table", 0) == sorted(ENTRIES)
    assert head(browser, "zoo-table", 3).get_attribute("aria-sort") is None


def test_numbers_are_sorted_as_numbers_and_what_is_unknown_comes_last(browser, pages):
    show(browser, pages["zoo"])
    for descending in (False, True):
        head(browser, "zoo-table", 4).find_element("tag name", "button").click()
        macs = [float(text.split()[0]) for text in column(browser, "zoo-table", 4)]
        assert macs == sorted(macs, reverse=descending)
    last = len(browser.find_elements("css selector", "#zoo-table thead th")) - 1
    for descending in (False, True):
        head(browser, "zoo-table", last).find_element("tag name", "button").click()
        cells = column(browser, "zoo-table", last)
        known = [float(text.split()[0]) for text in cells if text != "not measured"]
        assert 0 < len(known) < len(cells)
        assert known == sorted(known, reverse=descending)
        assert cells[len(known) :] == ["not measured"] * (len(cells) - len(known))


def test_filters_leave_what_fits_and_say_how_many(browser, pages):
    show(browser, pages["zoo"])
    browser.execute_script("document.querySelector('form details').open = true")

    def field(test, number):
        return browser.find_element("css selector", f"[data-test={test}][data-column='{number}']")

    def count():
        return browser.find_element("css selector", "form [role=status]").text

    assert count() == f"{len(ENTRIES)} of {len(ENTRIES)} shown"
    field("holds", 0).send_keys("LENET_mnist_shape")
    shown = column(browser, "zoo-table", 0)
    assert shown == [name for name in ENTRIES if name.startswith("lenet_mnist_shape")]
    assert count() == f"{len(shown)} of {len(ENTRIES)} shown"
    browser.find_element("css selector", "form button[type=reset]").click()
    assert len(column(browser, "zoo-table", 0)) == len(ENTRIES)
    field("most", 3).send_keys("0.7")
    shown = column(browser, "zoo-table", 0)
    assert NAME in shown
    assert OTHER not in shown
    assert all(float(text) <= 0.7 for text in column(browser, "zoo-table", 3))
    field("equals", 2).send_keys("mnist")
    assert set(column(browser, "zoo-table", 2)) == {"mnist"}
    browser.find_element("css selector", "form button[type=reset]").click()
    field("known", len(browser.find_elements("css selector", "#zoo-table thead th")) - 1).send_keys(
        "measured"
    )
    assert "not measured" not in column(
        browser, "zoo-table", len(browser.find_elements("css selector", "#zoo-table thead th")) - 1
    )


def test_marks_say_their_figures_under_the_pointer_and_at_the_focus(browser, pages):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["zoo"], 360)
    hint = browser.find_element("id", "hint")
    assert not hint.is_displayed()
    link = browser.find_element("css selector", f"svg a[href='#entry-{NAME}']")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link
    )
    browser.execute_script("arguments[0].focus()", link)
    assert hint.is_displayed()
    assert f"{NAME}: " in hint.text
    assert link.get_attribute("aria-label") == hint.text
    box = hint.rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    link.send_keys(Keys.ESCAPE)
    assert not hint.is_displayed()
    show(browser, pages["run"])
    mark = browser.find_element("css selector", "svg [data-hint^='compact, conv1']")
    hint = browser.find_element("id", "hint")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark
    )
    ActionChains(browser).move_to_element(mark).perform()
    assert hint.is_displayed()
    assert "250 multiply-adds" in hint.text
    ActionChains(browser).move_by_offset(0, 300).perform()
    assert not hint.is_displayed()


def test_a_focused_head_is_not_behind_the_first_column(browser, pages):
    show(browser, pages["zoo"], 360)
    for number in (9, 3, 1):
        button = head(browser, "zoo-table", number).find_element("tag name", "button")
        browser.execute_script("arguments[0].focus()", button)
        left, edge = browser.execute_script(
            "return [arguments[0].getBoundingClientRect().left,"
            "document.querySelector('#zoo-table thead th').getBoundingClientRect().right]",
            button,
        )
        assert left >= edge - 1


def test_everything_is_reached_by_the_keyboard_and_the_focus_is_seen(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["zoo"])
    reached = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        tag, text, outline = browser.execute_script(
            "const e = document.activeElement; const style = getComputedStyle(e);"
            "return [e.tagName, e.textContent.trim(), parseFloat(style.outlineWidth)]"
        )
        assert outline >= 1, (tag, text)
        reached.append((tag, text.split("\n")[0]))
    assert reached[0] == ("A", "Skip to the content")
    tags = [tag for tag, _ in reached]
    assert {"INPUT", "SELECT", "SUMMARY", "BUTTON", "DIV"} <= set(tags)


@pytest.mark.skipif(not Path(AXE).is_file(), reason="SSL_AXE names no axe.min.js")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", ["zoo", "run"])
def test_axe_finds_nothing(browser, pages, name, width, scheme):
    show(browser, pages[name], width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(AXE).read_text()})
    found = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then((found) => done(found.violations))"
    )
    assert [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found] == []
