"""Takes the screenshots in this folder, from two runs: `make pictures` trains them and calls this script.

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

FOLDER = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
MARGIN = 14  # pixels around the denoising viewer


def main(runs: list[Path]) -> None:
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "page.html"
        write_page(runs, file)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)

        def open_page(width: int, height: int, scheme: str, scale: float) -> Page:
            size = {"width": width, "height": height}
            context = browser.new_context(offline=True, viewport=size, color_scheme=scheme, device_scale_factor=scale)
            page = context.new_page()
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
            return page

        take_viewer(open_page(1100, 900, "light", 1.5), 99, "viewer.png")
        take_viewer(open_page(1100, 900, "dark", 1.25), 9, "report-dark.png")
        open_page(1100, 1250, "light", 1.25).screenshot(path=FOLDER / "report.png")
        phone = open_page(390, 844, "light", 1.5)
        select_group(phone, 9)
        phone.evaluate("document.getElementById('viewer').scrollIntoView()")
        phone.screenshot(path=FOLDER / "report-phone.png")
        browser.close()


def select_group(page: Page, forward_pass: int) -> None:
    """Selects the group of the first run with accuracy nearest to 1/2, after this forward pass or the last one."""
    names = page.locator("#group option").all_inner_texts()
    first = "step " if names[0].startswith("step ") else names[0].split(" · ")[0]
    counts = [re.findall(r"(\d+) of (\d+) correct", name)[0] for name in names if name.startswith(first)]
    distances = [abs(int(correct) - int(total) / 2) for correct, total in counts]
    page.select_option("#group", str(distances.index(min(distances))))
    page.locator("#pass").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        forward_pass,
    )


def take_viewer(page: Page, forward_pass: int, name: str) -> None:
    select_group(page, forward_pass)
    box = page.locator("#viewer").bounding_box()
    assert box is not None
    clip = {"x": box["x"] - MARGIN, "y": box["y"] - MARGIN}
    clip |= {"width": box["width"] + 2 * MARGIN, "height": box["height"] + 2 * MARGIN}
    page.screenshot(path=FOLDER / name, clip=clip, full_page=True)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
