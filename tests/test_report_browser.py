"""The page as a reader has it: in a real browser, on a desk and on a phone, by day and by night."""

from __future__ import annotations

import shutil

import pytest
from test_report import write_run

from lit_cpt.events import append_event
from lit_cpt.report import write_report

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH")]
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")
LONG = "a_source_whose_name_is_far_too_long_to_stand_in_a_table_or_under_a_chart_of_any_width"
BOXES = """return [...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll('path')].filter(one => one.getTotalLength())
  return [box.width > 100 && box.height > 60, marks.length > 5, getComputedStyle(svg.parentElement).display]})"""
SMALL = """return [...document.querySelectorAll(arguments[0])].filter(one => one.offsetParent && one.innerText.trim() &&
  parseFloat(getComputedStyle(one).fontSize) < arguments[1]).map(one => one.tagName + ': ' + one.innerText)"""
OUT_OF_THE_PAGE = """return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll,pre,svg') &&
  one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
LETTERS = """return Math.min(...[...document.querySelectorAll('svg text')].filter(one =>
  one.getBoundingClientRect().width).map(one => parseFloat(getComputedStyle(one).fontSize) *
  Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b)))"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def named_oddly(folder):
    """A run with markup and a very long word among its names, that went through much."""
    plan, file = folder / "plan.json", folder / "evals" / "step00001400.json"
    plan.write_text(plan.read_text().replace('"web"', f'"{LONG}"').replace('"qa"', '"<b>qa</b>"'))
    file.write_text(file.read_text().replace('"code"', f'"{LONG}"'))
    for step in range(200):
        append_event(folder, "spike", step=step, at_step=step, what="spike", skipped=True, scores=[7.0, None])
        append_event(folder, "rollback", step=step, checkpoint=f"/{'x' * 200}/step.ckpt", pass_over=[step, step + 1])
    return folder


@pytest.fixture(scope="session", params=["one", "ten"])
def page(request, tmp_path_factory):
    """Of a run, and of ten with odd names, one of them without most of what a run writes."""
    root = tmp_path_factory.mktemp(request.param)
    runs = {"recipe": write_run(root / "recipe", "recipe")}
    if request.param == "ten":
        runs |= {"baseline": write_run(root / "baseline", "baseline"), "odd": named_oddly(write_run(root / "odd"))}
        bare = root / "bare"
        append_event(bare, "start", step=0)
        runs |= {f"<i>{number}</i> {'of a long name ' * 4}": bare for number in range(7)}
    return write_report(runs, root / "report.html", "A page & its runs")


def show(browser, page, width=1440, scheme="light"):
    """Open the page on a screen of this width."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_is_read_at_any_width_without_an_error(browser, page, width):
    show(browser, page, width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.execute_script(OUT_OF_THE_PAGE) == []
    assert browser.execute_script(SMALL, "p, li, summary, h1, h2", 14) == []
    assert browser.execute_script(SMALL, "caption, th, td, small", 12) == []
    assert browser.execute_script(LETTERS) > 9.5


@pytest.mark.parametrize("width", [390, 1440])
def test_every_chart_is_drawn(browser, page, width):
    show(browser, page, width)
    drawn = browser.execute_script(BOXES)
    seen = [(has_room, has_marks) for has_room, has_marks, display in drawn if display != "none"]
    assert len(seen) >= 10
    assert set(seen) == {(True, True)}
    shown = {"wide", ""} if width > 800 else {"narrow", ""}
    assert set(browser.execute_script("return [...document.querySelectorAll('figure')].filter(one => "
                                      "one.offsetParent).map(one => one.className)")) == shown


def test_night_changes_the_page_and_its_charts(browser, page):
    looks = []
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        looks.append(browser.execute_script(
            "return [document.body, document.querySelector('svg text'), document.querySelector('h1')].map(one => { "
            "const style = getComputedStyle(one); return style.backgroundColor + style.fill + style.color })"))
    assert all(day != night for day, night in zip(*looks, strict=True))


def test_paper_is_white_and_holds_every_table(browser, page):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    browser.get(page.as_uri())
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert browser.execute_script("return [...document.querySelectorAll('table')].filter(one => "
                                  "one.getBoundingClientRect().right > innerWidth).map(one => one.innerText)") == []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_nothing_is_asked_of_the_network(browser, page):
    show(browser, page)
    asked = "document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')"
    told = browser.get_log("performance")
    assert not [line for line in told if "requestWillBeSent" in line["message"] and "file://" not in line["message"]]
    browser.execute_script(asked)
    assert any("Content Security Policy" in line["message"] for line in browser.get_log("browser"))
