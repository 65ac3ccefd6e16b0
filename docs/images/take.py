"""The pictures in this folder, from two runs: `make pictures` trains them and calls this.

python docs/images/take.py PRUNED UNPRUNED
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from stipule.report.page.build import write_page

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MARGIN = 14  # pixels of the page left around a part of it


def main(runs: list[Path]) -> None:
    with TemporaryDirectory() as place, sync_playwright() as started:
        file = Path(place) / "page.html"
        write_page(runs, file)
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        def opened(width: int, height: int, scheme: str, scale: float) -> Page:
            size = {"width": width, "height": height}
            context = browser.new_context(offline=True, viewport=size, color_scheme=scheme, device_scale_factor=scale)
            page = context.new_page()
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
            return page

        viewer(opened(1100, 900, "light", 1.5), 99, "viewer.png")
        viewer(opened(1100, 900, "dark", 1.25), 9, "report-dark.png")
        opened(1100, 1250, "light", 1.25).screenshot(path=HERE / "report.png")
        phone = opened(390, 844, "light", 1.5)
        show(phone, 9)
        phone.evaluate("document.getElementById('viewer').scrollIntoView()")
        phone.screenshot(path=HERE / "report-phone.png")
        browser.close()


def show(page: Page, call: int) -> None:
    """Of the first run the group with the most even score, after this model call or the last one."""
    names = page.locator("#group option").all_inner_texts()
    first = "step " if names[0].startswith("step ") else names[0].split(" · ")[0]
    scores = [list(map(int, re.findall(r"(\d+) of (\d+) right", name)[0])) for name in names if name.startswith(first)]
    most_even = min(range(len(scores)), key=lambda place: abs(scores[place][0] - scores[place][1] / 2))
    page.select_option("#group", str(most_even))
    page.locator("#call").evaluate(
        "(slider, call) => { slider.value = call; slider.dispatchEvent(new Event('input', {bubbles: true})); }", call
    )


def viewer(page: Page, call: int, name: str) -> None:
    show(page, call)
    box = page.locator("#viewer").bounding_box()
    assert box is not None
    clip = {"x": box["x"] - MARGIN, "y": box["y"] - MARGIN}
    clip |= {"width": box["width"] + 2 * MARGIN, "height": box["height"] + 2 * MARGIN}
    page.screenshot(path=HERE / name, clip=clip, full_page=True)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
