"""Every page can be found from the index, and every link between pages leads somewhere."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
DOCS = CHECKOUT / "docs"
INDEX = DOCS / "README.md"
PAGES = sorted([*CHECKOUT.glob("*.md"), *DOCS.glob("*.md")])
README_MAX_LINES = 150

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose_of(page):
    """Return a page without its fenced blocks: what looks like a link or a heading there is text."""
    return FENCE.sub("", page.read_text())


def links_of(page):
    """Return the targets of a page's links to files of the checkout, in its code spans as little as in its blocks."""
    targets = LINK.findall(re.sub(r"`[^`]*`", "", prose_of(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_of(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#{1,6} +(.*?) *$", prose_of(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        times = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found)
        found.append(f"{anchor}-{times}" if times else anchor)
    return found


def linked_by(page):
    return {(page.parent / target.partition("#")[0]).resolve() for target in links_of(page)}


LINKS = [(page, target) for page in PAGES for target in links_of(page)]


def test_there_are_links():
    assert len(LINKS) > 50


@pytest.mark.parametrize("page", sorted([*DOCS.glob("*.md"), *(DOCS / "man").iterdir()]), ids=lambda page: page.name)
def test_the_index_links_to_each_page(page):
    assert page == INDEX or page in linked_by(INDEX)


def test_readme_links_to_the_index():
    assert INDEX in linked_by(CHECKOUT / "README.md")


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.name}-{target}" for page, target in LINKS])
def test_a_link_leads_somewhere(page, target):
    """The file is there, and so is the heading that an anchor names."""
    path, _, anchor = target.partition("#")
    place = (page.parent / unquote(path)).resolve() if path else page
    assert place.is_relative_to(CHECKOUT)
    assert place.exists()
    if anchor:
        assert anchor in anchors_of(place)


@pytest.mark.parametrize(
    ("headings", "anchors"),
    [
        ("# What `qrmi-slurm validate-config` finds", ["what-qrmi-slurm-validate-config-finds"]),
        ("## 5. The hooks, in slurm.conf", ["5-the-hooks-in-slurmconf"]),
        ("## Options of the plugin's line", ["options-of-the-plugins-line"]),
        ("# Why\n\n# Why", ["why", "why-1"]),
        ("```\n# not a heading\n```", []),
    ],
)
def test_an_anchor_is_the_heading_without_punctuation(tmp_path, headings, anchors):
    page = tmp_path / "page.md"
    page.write_text(f"{headings}\n")
    assert anchors_of(page) == anchors


def test_readme_fits_on_two_screens():
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= README_MAX_LINES
