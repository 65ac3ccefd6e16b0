"""`stipule watch`: runs as a page that refreshes itself during training."""

from __future__ import annotations

from typing import Annotated

import typer

from stipule.cli.app import Runs, app, console


@app.command(epilog="Example:  stipule watch runs/quickstart, while it is being trained elsewhere; Ctrl-C stops it")
def watch(
    runs: Runs,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen on. With another than this, other machines can read the runs.")
    ] = "127.0.0.1",
) -> None:
    """Serve the page of `stipule report` and refresh it during training; for this machine only unless --host is set."""
    from stipule.report.page.serve import LOOPBACK, PageServer

    with PageServer(runs, host, port) as server:
        console.print(f"{server.address}  (Ctrl-C stops)", soft_wrap=True, highlight=False)
        if host not in LOOPBACK:
            console.print(f"every machine that can reach {host} can read these runs and their responses")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.print("stopped")
