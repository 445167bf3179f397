"""The page of a report."""

import re
from html.parser import HTMLParser

from doubles import SECRET
from ledger_lines import failed, line, usage_of

from qrmi_slurm.report import page, usage


class Page(HTMLParser):
    """How often each tag is in a page, and the values of all attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = {}
        self.values = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.values += [value or "" for _, value in attrs]


def test_page_and_picture_load_nothing(report, tmp_path):
    written, picture = tmp_path / "a.html", tmp_path / "a.svg"
    assert report("--html", written, "--svg", picture) == (0, "", "")
    text = written.read_text()
    found = Page(text)
    assert not found.tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"url\(|@import|(?:src|href)=|\son[a-z]+=", text)
    assert found.tags["svg"] == 1
    assert found.tags["title"] >= 1 + 4
    assert "prefers-color-scheme:dark" in text and "prefers-color-scheme: dark" in picture.read_text()
    assert SECRET not in text + picture.read_text()
    assert "[bold]bob" in text and "unused" in text
    assert "held now" in text


def test_texts_of_a_ledger_are_not_read_as_markup():
    evil = "</title><script>alert(1)</script>&\x00\x1b\ud800"
    found = usage_of(line(1, user=evil, qpu=f"q{evil}", account=evil, node=evil), failed(2, user=evil, qpu=f"q{evil}"))
    for keys in (["user"], ["account", "qpu"]):
        text = page.render(found, keys, usage.KEYS["user"])
        text.encode("utf-8")
        assert "<script" not in text
        assert Page(text).tags["svg"] == 1
