"""The docs as a site: README first, then docs/*.md as they stand. `make docs` builds it, without a network.

The source folder is the repository itself, so that a link that works on GitHub works here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from stipule import __version__

project = "stipule"
version = release = __version__
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"]
exclude_patterns = [".venv", "runs", "site", "src", "tests", "recipes", "benchmarks"]
highlight_language = "text"
myst_heading_anchors = 3
smartquotes = False

html_theme = "furo"
html_title = f"stipule {version}"
html_show_copyright = False
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

MAP = {
    "Use": [
        *(
            "commands",
            "python",
            "from-trl",
            "names",
            "report",
            "metrics",
            "models",
            "lm-eval",
            "grading",
            "rewards",
            "custom-parts",
            "plan",
            "gpu",
            "reference",
        )
    ],
    "What was measured": ["results", "theory", "speed", "scaling"],
    "How it is made": ["papers", "decisions", "testing", "comparison"],
}


def add_map(app: Sphinx, page: str, source: list[str]) -> None:
    """The landing page is the README; the tree of pages stands under it, unseen."""
    if page != root_doc:
        return
    trees = [(caption, [f"docs/{name}" for name in names]) for caption, names in MAP.items()]
    trees[-1][1].extend(["CONTRIBUTING", "CHANGELOG"])
    for caption, names in trees:
        source[0] += "\n\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(names) + "\n```\n"


def add_front_door(app: Sphinx, failure: Exception | None) -> None:
    """A browser that is given the folder looks for index.html."""
    if failure is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_map)
    app.connect("build-finished", add_front_door)
    return {"parallel_read_safe": True}
