"""Commands that show runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stipule.cli.app import Out, app, console

Runs = Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders; several are overlaid.")]


@app.command(epilog="Examples:  stipule report runs/quickstart  ·  stipule report runs/plain runs/stp --out both.html")
def report(runs: Runs, out: Out = None) -> None:
    """One HTML file of a run: is it learning, curves, costs, responses, a denoising viewer; needs no network."""
    from stipule.report.page.build import write_page

    place = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    with console.status("reading"):
        size = write_page(runs, place)
    console.print(f"{place} ({size / 1000:,.0f} kB); open it in a browser", soft_wrap=True, highlight=False)


@app.command(epilog="Example:  stipule watch runs/quickstart, while it is being trained elsewhere; Ctrl-C stops it")
def watch(
    runs: Runs,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help="Whom to listen to; others than this machine can read the runs.")] = (
        "127.0.0.1"
    ),
) -> None:
    """The same page, kept fresh while the run goes on; for this machine only unless --host says otherwise."""
    from stipule.report.page.serve import LOOPBACK, PageServer

    with PageServer(runs, host, port) as server:
        console.print(f"{server.address}  (Ctrl-C stops)", soft_wrap=True, highlight=False)
        if host not in LOOPBACK:
            console.print(f"whoever reaches {host} can read these runs and their responses")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.print("stopped")
