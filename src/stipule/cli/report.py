"""`stipule report`: runs as one HTML file."""

from __future__ import annotations

from pathlib import Path

from stipule.cli.app import Out, Runs, app, console


@app.command(epilog="Examples:  stipule report runs/quickstart  ·  stipule report runs/plain runs/stp --out both.html")
def report(runs: Runs, out: Out = None) -> None:
    """Write one HTML file about a run: summary, curves, costs, responses, a denoising viewer; needs no network."""
    from stipule.report.page.build import write_page
    from stipule.report.progress import parts

    path = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    with parts(console, "reading"):
        size = write_page(runs, path)
    console.print(f"{path} ({size / 1000:,.0f} kB); open it in a browser", soft_wrap=True, highlight=False)
