"""The pictures in this folder, from two runs: `make pictures` trains them and calls this.

python docs/images/take.py PRUNED UNPRUNED
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Locator, Page, sync_playwright

from stipule.report.page.build import write_page

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main(runs: list[Path]) -> None:
    with TemporaryDirectory() as place, sync_playwright() as started:
        file = Path(place) / "page.html"
        write_page(runs, file)
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        def opened(width: int, height: int, scheme: str, scale: float) -> Page:
            context = browser.new_context(
                offline=True,
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                device_scale_factor=scale,
            )
            page = context.new_page()
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
            return page

        take(viewer(opened(1100, 900, "light", 1.5), call=9), "viewer.png")
        opened(1100, 1250, "light", 1.25).screenshot(path=HERE / "report.png")
        take(viewer(opened(1100, 900, "dark", 1.25), call=99), "report-dark.png")
        phone = opened(390, 844, "light", 2)
        viewer(phone, call=9)
        phone.evaluate("document.getElementById('viewer').scrollIntoView()")
        phone.screenshot(path=HERE / "report-phone.png")
        browser.close()


def viewer(page: Page, call: int) -> Locator:
    """The denoising viewer of the first group, after this model call or its last."""
    page.locator("#call").evaluate(
        "(slider, call) => { slider.value = call; slider.dispatchEvent(new Event('input', {bubbles: true})); }", call
    )
    return page.locator("#viewer")


def take(part: Locator, name: str) -> None:
    part.screenshot(path=HERE / name)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
