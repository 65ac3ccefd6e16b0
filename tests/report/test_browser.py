"""The report page in a real browser, without a network."""

import json
import random
import shutil
import threading
import time

import pytest

from stipule.report.page.build import write_page
from stipule.report.page.serve import PageServer
from tests.report.made_runs import HOSTILE, metrics, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        chromium = api.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of two runs, one of them hostile, and a page of 2,000 steps and 500 responses of 256 tokens."""
    folder = tmp_path_factory.mktemp("pages")
    two = [write_run(folder / "learns"), write_run(folder / "flat", rise=0, seed=1, hostile=True)]
    write_page(two, folder / "two.html")
    equal = write_run(folder / "equal")
    file = min((equal / "rollouts").iterdir())
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[:4] = [row | {"reward": 0.1, "correct": False} for row in rows[:4]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([equal], folder / "equal.html")
    big = write_run(folder / "big", steps=2000, every=32, length=256)
    assert write_page([big], folder / "big.html") < 2_000_000
    return folder


@pytest.fixture
def show(browser, pages):
    """Opens a page from disk without a network; fails if it logs an error or sends a request."""
    problems, contexts = [], []

    def open_page(name, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url) if not request.url.startswith("file:") else None)
        tab.goto((pages / name).as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def test_curves_are_charts_with_descriptions_and_tables(show):
    tab = show("two.html")
    charts = tab.locator("svg[role=img]")
    assert charts.count() >= 12
    for index in range(charts.count()):
        chart = charts.nth(index)
        assert chart.locator("> title").text_content() and len(chart.locator("> desc").text_content()) > 10
    assert tab.locator("#charts path.line").count() >= 20  # two runs overlaid
    assert "learns: " in charts.first.locator("> desc").text_content()
    table = tab.locator("#charts details.data").first
    assert table.locator("tbody tr").count() == 0
    table.locator("summary").click()
    table.locator("tbody tr").first.wait_for()
    assert table.locator("tbody tr").count() == 80


def test_the_summary_says_whether_the_run_learns(show):
    tab = show("two.html")
    assert "It is learning" in tab.locator(".run.good").inner_text()
    assert "No clear change" in tab.locator(".run.flat").inner_text()


def test_a_hostile_response_is_shown_as_text_and_not_executed(show):
    tab = show("two.html")
    assert tab.evaluate("window.owned") is None
    tab.fill("#text", "window.owned")
    assert tab.locator(".responses tbody tr").count() == 8
    text = tab.locator(".responses tbody .open").first.inner_text()
    assert text.startswith(HOSTILE[:40])
    tab.locator(".responses tbody .open").first.click()
    assert HOSTILE[:40] in tab.locator(".member.selected .token").first.inner_text()
    assert tab.locator("pre.prompt").inner_text().startswith(HOSTILE[:40])
    assert tab.evaluate("window.owned") is None
    assert tab.locator("img").count() == 0


def test_sorting_and_filtering_by_reward(show):
    tab = show("two.html")
    tab.click("[data-sort=reward]")
    column = tab.locator(".responses tbody tr td:nth-child(4)")
    values = [float(text) for text in column.all_inner_texts()]
    assert values == sorted(values, reverse=True) and len(set(values)) > 3
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.click("[data-sort=reward]")
    values = [float(text) for text in column.all_inner_texts()]
    assert values == sorted(values)
    tab.fill("#min", "0.2")
    tab.fill("#max", "0.5")
    values = [float(text) for text in column.all_inner_texts()]
    assert values and all(0.2 <= value <= 0.5 for value in values)
    tab.fill("#min", "")
    tab.fill("#max", "")
    tab.select_option("#correct", "1")
    assert set(tab.locator(".responses tbody tr td:nth-child(5)").all_inner_texts()) == {"✓"}


def test_the_slider_and_the_keys_select_forward_passes_and_responses(show):
    tab = show("two.html")
    masked = tab.locator(".member.selected .token.masked")
    assert masked.count() == 0
    assert tab.locator(".member.selected .anchor").count() == 2 and tab.locator(".member.selected .cut").count() == 2
    tab.locator("#pass").evaluate("s => { s.value = 0; s.dispatchEvent(new Event('input', {bubbles: true})); }")
    assert tab.locator("#pass-label").inner_text() == "forward pass 1 of 13"
    assert masked.count() == 13  # of 16: two are anchors, one is unmasked
    assert tab.locator(".member.selected .just-unmasked").count() == 1
    tab.focus("#denoising")
    tab.keyboard.press("ArrowRight")
    assert (tab.locator("#pass-label").inner_text(), masked.count()) == ("forward pass 2 of 13", 12)
    tab.keyboard.press("ArrowLeft")
    assert masked.count() == 13
    tab.keyboard.press("End")
    assert masked.count() == 0
    tab.keyboard.press("Home")
    members = tab.locator(".member")
    assert members.count() == 4 and "selected" in members.nth(0).get_attribute("class")
    tab.keyboard.press("ArrowDown")
    assert "selected" in members.nth(1).get_attribute("class")
    for _ in range(3):
        tab.keyboard.press("ArrowDown")
    assert tab.locator("#group").input_value() == "1" and "selected" in members.nth(0).get_attribute("class")
    tab.keyboard.press("ArrowUp")
    assert tab.locator("#group").input_value() == "0" and "selected" in members.nth(3).get_attribute("class")
    tab.focus("#pass")  # the keys also work when the slider has the focus
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#pass-label").inner_text() == "forward pass 3 of 13"


def test_the_viewer_opens_a_group_whose_rewards_differ(show):
    tab = show("equal.html")
    assert tab.locator("#group option").first.inner_text().startswith("step 5 · 0 of 4 correct · ")
    assert tab.locator("#group").input_value() == "1"
    assert tab.locator("#pass-label").inner_text() == "forward pass 13 of 13"
    tab.select_option("#group", "0")
    assert {text.split("\n")[0] for text in tab.locator(".rewards").all_inner_texts()} == {"✗ wrong · reward 0.1"}


def test_the_slider_can_be_dragged(show):
    tab = show("two.html")
    tab.locator("#pass").scroll_into_view_if_needed()
    box = tab.locator("#pass").bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + box["width"] - 8, middle)
    tab.mouse.down()
    labels = set()
    for fraction in (0.8, 0.6, 0.4, 0.2, 0.03):
        tab.mouse.move(box["x"] + fraction * box["width"], middle)
        labels.add(tab.locator("#pass-label").inner_text())
    tab.mouse.up()
    assert len(labels) == 5 and tab.locator(".member.selected .token.masked").count() == 13


def test_light_and_dark_and_a_phone(show):
    tab = show("two.html", color_scheme="dark", viewport={"width": 375, "height": 700})
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(colour)
    tab.click("#theme")
    light = tab.evaluate(colour)
    assert dark != light
    tab.click("#theme")
    assert tab.evaluate(colour) == dark
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375  # nothing is wider than the screen


def test_two_thousand_steps_and_five_hundred_responses_open_in_two_seconds(show):
    seconds = []
    for _ in range(3):  # the best of three, because the machine may be busy
        started = time.perf_counter()
        tab = show("big.html")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 2
    assert int(tab.locator("#count").inner_text().split()[0]) >= 480
    assert "2000 steps are drawn as" in tab.locator("#summary").inner_text()


def test_a_served_page_is_updated_and_keeps_typed_text(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("stipule.report.page.serve.REFRESH_SECONDS", 0.0)
    path = write_run(tmp_path / "run", steps=10)
    with PageServer([path], port=0) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        context = browser.new_context()
        tab, problems = context.new_page(), []
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(server.address)
        tab.wait_for_selector("html[data-ready]")
        tab.fill("#min", "0.1")
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics(11, random.Random(0))) + "\n")
        tab.locator("#charts details.data summary").first.click()
        tab.focus("#min")
        tab.get_by_text("Live: step 11").wait_for(timeout=10_000)
        assert tab.locator("#charts details.data").first.get_attribute("open") is not None
        assert tab.evaluate("document.activeElement.id") == "min"
        assert "11 of 10 steps" in tab.locator("#summary").inner_text()
        assert tab.locator("#min").input_value() == "0.1"
        context.close()
        server.shutdown()
    assert problems == []
