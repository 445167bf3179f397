"""Licenses, job_submit.lua and the catalogue: what is in order, and what is reported."""

import json
import os

import pytest
from checkups import levels, options_of, settings_of

from qrmi_slurm.checks import license_checks
from qrmi_slurm.config.config_file import load
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.scheduling import catalogue

HERE = os.uname().nodename.partition(".")[0]
USED = {"JobSubmitPlugins": "lua", "PrologFlags": "Alloc", "SlurmctldHost": f"{HERE}(127.0.0.1)"}


@pytest.fixture
def licensed(tmp_path):
    """Return a function that runs the license checks, with sound files beside slurm.conf."""
    config = tmp_path / "qrmi_config.json"
    config.write_text(
        json.dumps({"resources": [{"name": name, "type": "iqm-server", "environment": {}} for name in "ab"]})
    )
    options = options_of(config_path=config)
    (tmp_path / "job_submit.lua").write_text('local qrmi = require("qrmi_slurm")\n')
    catalogue.write(tmp_path / "qrmi_catalogue.lua", load(config).resources.values(), {})

    def look(notices=None, options=options, **values):
        return list(license_checks.run(settings_of(**values), options, tmp_path / "slurm.conf", notices or {}))

    look.folder, look.options = tmp_path, options
    return look


def test_licenses_in_order(licensed):
    results = licensed(**USED, Licenses="matlab:2,qpu_a:1,qpu_b:1")
    assert levels(results) == {"JobSubmitPlugins": "ok", "catalogue": "ok", "Licenses": "ok"}


def test_a_release_that_keeps_licenses_in_a_requeue(licensed):
    assert "licenses" not in levels(licensed(**USED, Licenses="qpu_a:1,qpu_b:1", SLURM_VERSION="25.11.7"))


def test_an_odd_word_among_the_licenses_hides_no_other(licensed):
    results = licensed(**USED, Licenses="matlab:2(n1),,qpu_a:1,qpu_b:1")
    assert levels(results)["Licenses"] == "ok"


def test_a_site_without_licenses_gets_one_result(licensed):
    """This holds with and without Lua plugins for other purposes."""
    assert levels(licensed(PrologFlags="Alloc")) == {"licenses": "ok"}
    (licensed.folder / "qrmi_catalogue.lua").unlink()
    (licensed.folder / "job_submit.lua").write_text("-- qrmi_slurm is not used\n")
    assert levels(licensed(**USED, Licenses="matlab:2")) == {"licenses": "ok"}
    (licensed.folder / "qrmi_config.json").write_text("{")
    assert licensed(**USED) == []


@pytest.mark.parametrize(
    ("values", "name", "level", "words"),
    [
        ({"Licenses": "qpu_a:1"}, "Licenses", "error", "set Licenses=qpu_a:1,qpu_b:1 and run scontrol reconfigure"),
        ({"Licenses": "qpu_a:1,qpu_b:3"}, "Licenses", "warning", "qpu_b (3, not 1)"),
        ({"JobSubmitPlugins": "(null)"}, "JobSubmitPlugins", "warning", "without lua no job gets the licenses"),
        ({"PrologFlags": "(null)"}, "licenses", "error", "a user's own srun can ask Prolog"),
        ({"SLURM_VERSION": "25.11.6"}, "licenses", "warning", "upgrade Slurm to 25.11.7 or newer"),
    ],
)
def test_settings_that_do_not_match_the_config(licensed, values, name, level, words):
    results = {result.name: result for result in licensed(**{**USED, "Licenses": "qpu_a:1,qpu_b:1", **values})}
    assert results[name].level.value == level
    assert words in f"{results[name].message} {results[name].hint}"


@pytest.mark.parametrize(
    ("change", "name", "level", "words"),
    [
        (lambda etc: (etc / "qrmi_catalogue.lua").unlink(), "catalogue", "error", "jobs with --qpu are refused"),
        (lambda etc: (etc / "qrmi_catalogue.lua").chmod(0o666), "catalogue", "error", "chmod 0644"),
        (lambda etc: (etc / "qrmi_catalogue.lua").chmod(0o600), "catalogue", "warning", "only root can read"),
        (lambda etc: os.chown(etc / "qrmi_catalogue.lua", 1, 1), "catalogue", "error", "belongs to uid 1"),
        (lambda etc: (etc / "qrmi_catalogue.lua").write_text(""), "catalogue", "warning", "out of date"),
        (
            lambda etc: (etc / "job_submit.lua").write_text("x"),
            "JobSubmitPlugins",
            "warning",
            "does not use qrmi_slurm",
        ),
        (lambda etc: (etc / "job_submit.lua").unlink(), "JobSubmitPlugins", "error", "will not start again"),
    ],
)
def test_files_that_are_missing_or_wrong(licensed, change, name, level, words):
    change(licensed.folder)
    results = {result.name: result for result in licensed(**USED, Licenses="qpu_a:1,qpu_b:1")}
    assert results[name].level.value == level
    assert words in f"{results[name].message} {results[name].hint}"


def test_the_catalogue_has_to_contain_notices(licensed):
    results = licensed({"a": "offline"}, **USED, Licenses="qpu_a:1,qpu_b:1")
    assert levels(results)["catalogue"] == "warning"


def test_a_compute_node_needs_neither_script_nor_catalogue(licensed):
    for name in ("job_submit.lua", "qrmi_catalogue.lua"):
        (licensed.folder / name).unlink()
    results = licensed(**{**USED, "SlurmctldHost": "elsewhere"}, Licenses="qpu_a:1,qpu_b:1")
    assert levels(results) == {"JobSubmitPlugins": "ok", "Licenses": "ok"}


@pytest.mark.parametrize(
    ("license", "level", "words"),
    [
        ("lanes", "ok", "a: lanes, 4"),
        ("lanes@there", "ok", "a: lanes@there, 2"),
        ("lane", "error", "Slurm has no license lane (a), so no job can have slots"),
        (None, "warning", "cannot ask slurmctld"),
    ],
)
def test_the_license_of_slots(licensed, monkeypatch, license, level, words):
    """Local ones are in slurm.conf, remote ones in slurmdbd. It does not matter whether the site counts its QPUs."""

    def shown(*arguments):
        if license is None:
            raise SchedulerError("no answer")
        line = "LicenseName={} Total={} Used=0 Free=2 Reserved=0 Remote=no\n"
        return line.format("lanes", 4) + line.format("lanes@there", 2)

    monkeypatch.setattr("qrmi_slurm.slurm.commands.run", shown)
    options = licensed.options._replace(slots_licenses={"a": license or "lanes"})
    [result] = [one for one in licensed(options=options) if one.name == "slots"]
    assert (result.level.value, words in result.message) == (level, True), result
