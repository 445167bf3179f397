import sys
from pathlib import Path

import pytest

from qrmi_slurm import names
from qrmi_slurm.validation import rules

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT / "docs"))

import generate  # noqa: E402
from made import environment, man, validate_config  # noqa: E402

PAGES = generate.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_made_page_is_as_the_code_has_it(path):
    """What `make docs` would write stands there already."""
    assert path.read_text() == PAGES[path], "run: make docs"


def test_there_is_no_man_page_of_a_command_that_is_gone():
    """Each man page is one of those that are made."""
    assert {path for path in PAGES if path.suffix == ".1"} == set((CHECKOUT / "docs" / "man").iterdir())


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.code)
def test_each_code_is_produced_by_its_example(rule):
    """The example of a code has that fault, at the severity that the page says, and shows no secret."""
    found = validate_config.diagnose(rule)
    assert rule in [finding.rule for finding in found.findings]
    assert "planted-secret" not in repr(found)


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.code)
def test_an_example_has_no_other_error_of_its_severity(rule):
    """An example shows its own fault: what else is found in it is less grave, or is that same fault."""
    order = list(rules.Severity)
    others = {finding.rule for finding in validate_config.diagnose(rule).findings} - {rule}
    assert not [other for other in others if order.index(other.severity) < order.index(rule.severity)], others


def test_each_example_belongs_to_a_code():
    """No example is left of a code that is gone."""
    assert {path.stem for path in validate_config.EXAMPLES.iterdir()} == {rule.code for rule in rules.RULES}


def test_each_code_has_its_section():
    """A link to a code leads to a section with its severity and what comes of it."""
    page = PAGES[generate.DOCS / "validate-config.md"]
    for rule in rules.RULES:
        section = page.partition(f"\n### {rule.code}\n")[2].partition("\n### ")[0]
        assert section.strip().startswith(f"**{rule.severity}**: {rule.title}.")
        assert f"{rule.severity} {rule.code}: " in section
        assert f"(#{rule.code.lower()})" in page


@pytest.mark.parametrize("path", [path for path in PAGES if path.suffix == ".1"], ids=lambda path: path.name)
def test_man_pages_have_what_people_look_for(path):
    """Name, synopsis, examples where --help has some, exit status; and no line that roff would take for a request."""
    text = PAGES[path]
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert f"\n.SH {heading}\n" in text
    assert ".SH EXAMPLES" in text or path.name == "qrmi-slurm-emulator.1"
    known = (".TH", ".SH", ".PP", ".TP", ".B ", ".nf", ".fi", '.\\"')
    assert not [line for line in text.splitlines() if line.startswith((".", "'")) and not line.startswith(known)]


def test_a_list_in_the_help_is_a_list_in_the_man_page():
    """Each line has its heading, and is no example."""
    text = PAGES[CHECKOUT / "docs" / "man" / "qrmi-slurm-qpus.1"]
    assert "\n.TP\n.B USABLE\nwhether " in text.partition("\n.SH NOTES\n")[2]


def test_a_variable_that_the_page_does_not_tell_of_is_an_error(monkeypatch):
    """What the hooks come to export, or what names.py gets, has to be described."""
    monkeypatch.setattr(names, "QRMI_JOB_UID", "QRMI_JOB_OWNER")
    with pytest.raises(LookupError, match=r"QRMI_JOB_OWNER.*QRMI_JOB_UID"):
        environment.page()
    monkeypatch.undo()
    monkeypatch.setattr(names, "ANOTHER", "QRMI_SLURM_ANOTHER", raising=False)
    with pytest.raises(LookupError, match="QRMI_SLURM_ANOTHER"):
        environment.page()


def test_stale_pages_are_named(tmp_path, monkeypatch, capsys):
    """--check writes nothing, names what is stale and exits 1; without it the page is written."""
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "CHECKOUT", tmp_path.parent)
    monkeypatch.setattr(man, "pages", dict)
    assert generate.main(["--check"]) == 1
    assert "validate-config.md is out of date: run make docs" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "validate-config.md").read_text() == PAGES[CHECKOUT / "docs" / "validate-config.md"]


def test_the_wheel_has_the_man_pages():
    """pyproject.toml installs docs/man where man(1) looks."""
    assert '"docs/man" = "share/man/man1"' in (CHECKOUT / "pyproject.toml").read_text()
