"""What QRMI said about the site's QPUs, and what it means that one was not asked."""

import pytest

from qrmi_slurm.calls import probe
from qrmi_slurm.config import config_file

pytestmark = pytest.mark.usefixtures("fake_qrmi")


def ask(site, timeout_s=1.0):
    options = site.options()
    resources = list(config_file.load(options.config_path).resources.values())
    return {finding.resource: finding for finding in probe.ask(resources, options, timeout_s)}


def test_one_that_was_not_asked_in_time_is_not_unreachable(site, monkeypatch):
    """Its service answers, and only was too slow for all of its QPUs."""
    monkeypatch.setattr(probe, "_AT_ONCE", 1)
    found = ask(site.add("a").add("b", status="hang").add("c"))
    assert found["a"].is_usable
    assert not found["b"].is_unasked
    assert found["b"].problem.startswith("no answer within ")
    assert (found["c"].is_unasked, found["c"].is_usable, found["c"].availability) == (True, None, None)
    assert "it was not asked within 1 s" in found["c"].problem


def test_one_whose_service_answers_nothing_is_unreachable_though_not_asked(site, monkeypatch):
    monkeypatch.setattr(probe, "_AT_ONCE", 1)
    found = ask(site.add("a", status="hang").add("b"))
    assert [found[name].is_unasked for name in "ab"] == [False, False]
    assert [found[name].is_usable for name in "ab"] == [False, False]


def test_a_program_that_prints_no_key_costs_only_its_own_qpu(site, tmp_path):
    program = tmp_path / "ask"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    source = {"secrets": {"QRMI_IBM_QCS_IAM_APIKEY": {"command": [str(program)]}}}
    found = ask(site.add("a", slurm=source).add("b"))
    assert "it ended with exit status 3" in found["a"].problem
    assert found["b"].is_usable
