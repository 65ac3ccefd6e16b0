"""The docs site builds without warnings or network, and its pages load nothing from the network."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("furo", reason='the docs extra is not installed: pip install -e ".[docs]"')

ROOT = Path(__file__).parents[1]
BUILD = """
import socket, sys
def refuse(*_): raise OSError("the docs build opened a connection")
socket.socket.connect = socket.getaddrinfo = refuse
from sphinx.cmd.build import main
sys.exit(main(["-W", "--keep-going", "-q", "-c", "docs/site", *sys.argv[1:]]))
"""
# Attributes that a browser loads without a click; the href of an <a> needs one.
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, str(source), str(out)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Loads(HTMLParser):
    """Collects every address that a page loads without a click."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in (LOADS.get(tag), "srcset", "poster") if name in values]
        self.addresses += re.findall(r"url\(([^)]+)\)", values.get("style") or "")


def test_every_page_is_built_and_the_readme_is_the_index(site):
    pages = [Path("README"), Path("CONTRIBUTING"), Path("CHANGELOG")]
    pages += [page.relative_to(ROOT).with_suffix("") for page in (ROOT / "docs").glob("*.md")]
    for page in pages:
        assert (site / page).with_suffix(".html").exists(), page
    assert (site / "index.html").read_text() == (site / "README.html").read_text()


def test_links_between_readme_and_docs_become_links_between_pages(site):
    text = (site / "index.html").read_text()
    for page in re.findall(r"\]\(docs/(\w+)\.md\)", (ROOT / "README.md").read_text()):
        assert f'href="docs/{page}.html"' in text, page
    assert 'href="speed.html"' in (site / "docs" / "decisions.html").read_text()


def test_the_site_loads_nothing_from_the_network(site):
    count = 0
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text())
        count += len(loads.addresses)
        assert not [address for address in loads.addresses if re.match(r"\s*[\"']?(https?:)?//", address)], page
    assert count > 100  # styles, scripts and pictures of every page
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


def test_a_dead_link_fails_the_build(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "docs", source / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    with (source / "docs" / "report.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0 and "nowhere" in done.stderr, done.stderr
