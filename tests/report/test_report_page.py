import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from reports import comparison, cost, failure, record, write

from spem.report.figures import figures
from spem.report.tables import read_contents
from spem.report.writer import render

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOT = Path(__file__).parents[2] / ".pytest_cache" / "report-screenshot.png"
STUDY = {
    "title": "Gates & networks",
    "question": "Is a < b?",
    "planned": 30,
    "commands": ["spem compare --gates none '{gate: se, label: \"</pre>\"}' --out runs/one"],
}


def page_of(folder, records, costs=(), study=None):
    return drawn(read_contents(write(folder, records, costs, study)))


def drawn(contents):
    return render(contents, [figures(group) for group in contents.groups], "html")


def visible(page):
    """The text of a page without its tags, style and script."""
    page = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_page_shows_everything_that_was_read(tmp_path):
    records = [*comparison(), failure("spem", 7, "the loss is not finite in epoch 3")]
    folder = write(tmp_path, records, [cost("none", 300), cost("spem", 250)], STUDY)
    contents = read_contents(folder)
    shown = visible(drawn(contents))
    said = [contents.title, contents.question, contents.state, *contents.notes, *contents.commands]
    said += [*contents.versions, *contents.devices, *contents.differing]
    said += contents.recipe.splitlines()
    for group in contents.groups:
        said += group.findings
        for table in (group.table, group.cost_table):
            said += [*table.header, *table.notes, *(c.text for row in table.rows for c in row)]
    assert contents.published is not None
    said += [cell.text for row in contents.published.rows for cell in row]
    missing = [each for each in said if each and " ".join(each.split()) not in shown]
    assert not missing
    assert "Accuracy against cost" in shown


def test_a_label_is_text(tmp_path):
    label = "<script>alert('x')</script>"
    records = [record(gate, seed, 0.9, label=gate) for gate in ("none", label) for seed in (0, 1)]
    page = page_of(tmp_path, records, study=STUDY | {"title": label})
    assert page.count("<script>") == 1
    assert visible(page).startswith(f"{label} {label}")


def test_the_page_asks_the_network_for_nothing(tmp_path):
    page = page_of(tmp_path, comparison(groups=["cifar10"]), study=STUDY)
    assert "default-src 'none'" in page
    addresses = re.findall(r"\b(?:src|href)=\"([^\"]*)\"", page)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert set(re.findall(r"https?://[\w./]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium here: chromium and chromedriver are not on the path")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    records = [*comparison(), record("alone", 9, 0.95)]
    folder = tmp_path_factory.mktemp("comparison")
    costs = [cost("none", 300), cost("se", 280), cost("spem", 1000)]
    path = folder / "report.html"
    path.write_text(page_of(folder, records, costs, STUDY))
    return path.as_uri()


def show(browser, page, *, width=1280, scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)


def colour_of(browser, selector, name):
    """Red, green and blue, from 0 to 255, of the first element."""
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return [
        int(each) for each in re.findall(r"\d+", browser.execute_script(script, selector, name))
    ]


def test_chromium_loads_the_page_without_errors(browser, page):
    show(browser, page)
    assert browser.get_log("browser") == []
    assert browser.title == STUDY["title"]
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map((svg) => {"
        " const box = svg.getBoundingClientRect(); return [box.width, box.height]; })"
    )
    assert len(sizes) == 9  # without the constant costs of one group
    assert all(width > 300 and height > 80 for width, height in sizes)
    SCREENSHOT.parent.mkdir(exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOT))


def test_chromium_sorts_a_table_by_a_click(browser, page):
    show(browser, page)

    def click(title):
        browser.execute_script(
            "[...document.querySelectorAll('table')[1].tHead.querySelectorAll('button')]"
            ".find((button) => button.textContent === arguments[0]).click()",
            title,
        )
        return browser.execute_script(
            "const table = document.querySelectorAll('table')[1];"
            "return [[...table.tBodies[0].rows].map((row) => row.cells[0].textContent),"
            "[...table.tHead.rows[0].cells].map((cell) => cell.ariaSort).filter(Boolean)]"
        )

    speed = "training, images/s"
    assert click(speed) == [["se", "none", "spem", "eca", "alone"], ["ascending"]]
    assert click(speed) == [["spem", "none", "se", "eca", "alone"], ["descending"]]
    assert click("gate") == [["alone", "eca", "none", "se", "spem"], ["ascending"]]


def test_chromium_shows_whole_tables_and_a_grid_without_holes(browser, page):
    show(browser, page)
    tables = browser.execute_script(
        "return [...document.querySelectorAll('section .wide')].slice(0, 4)"
        ".map((wide) => wide.scrollWidth - wide.clientWidth)"
    )
    assert tables == [0] * 4
    grids = browser.execute_script(
        "return [...document.querySelectorAll('.figures')].map((grid) =>"
        " [...grid.children].map((figure) => [figure.offsetLeft, figure.offsetTop]))"
    )
    for figures_ in grids:
        *others, last = figures_
        lines = [sum(top == other for _, other in others) for _, top in others]
        assert set(lines[: len(lines) // 2 * 2]) == {2}
        assert last[1] > max(top for _, top in others)


def test_chromium_shows_the_page_on_a_phone(browser, page):
    show(browser, page, width=390)
    wide, shown = browser.execute_script(
        "const wide = document.querySelector('.wide'); wide.scrollLeft = 300;"
        "return [document.documentElement.scrollWidth,"
        " wide.querySelector('tbody th').getBoundingClientRect().left"
        " - wide.getBoundingClientRect().left]"
    )
    assert wide == 390
    assert 0 <= shown <= 2
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')]"
        ".map((text) => text.getBoundingClientRect().height)"
    )
    assert min(heights) >= 9


def test_chromium_shows_the_page_light_and_dark(browser, page):
    for scheme, light in (("light", True), ("dark", False)):
        show(browser, page, scheme=scheme)
        background = sum(colour_of(browser, "body", "backgroundColor"))
        for selector, name in (("h1", "color"), ("figure svg text", "fill")):
            distance = sum(colour_of(browser, selector, name)) - background
            assert (distance < -300) if light else (distance > 300)
