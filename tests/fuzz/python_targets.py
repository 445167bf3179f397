"""What reads users' text and files, under a coverage-guided fuzzer: `python_targets.py TARGET CORPUS ...`.

A finding is any exception that a module does not promise, and any result that breaks what it promises. atheris is
libFuzzer for Python; its options go behind the target's name.
"""

import glob
import sys

import atheris

with atheris.instrument_imports(include=["qrmi_slurm"]):
    from qrmi_slurm.config import config_file, stored_secrets
    from qrmi_slurm.errors import (
        ConfigError,
        ContextError,
        ExportsError,
        PlugstackError,
        RecordFormatError,
        SelectionError,
    )
    from qrmi_slurm.slurm import conf_file, environ, job_context, plugstack, selection
    from qrmi_slurm.state import exports, record
    from qrmi_slurm.text import is_one_line, printable

from pathlib import Path

NOWHERE = Path("/nowhere/file")


def text_of(data):
    return data.decode("utf-8", "surrogateescape")


def fuzz_selection(data):
    text = text_of(data)
    shown = printable(text)
    assert len(shown) <= 200 and is_one_line(shown)
    shown.encode()
    try:
        terms = selection.parse(text)
    except SelectionError as error:
        assert is_one_line(str(error))
        return
    assert len(terms) <= selection.MAX_TERMS
    assert sum(term.is_choice for term in terms) <= selection.MAX_CHOICES
    for term in terms:
        assert not selection.name_fault(term.text) and term.text in text
        term.fits_name("ibm_demo")
    assert selection.parse(",".join(term.text for term in terms)) == terms


def fuzz_node_list(data):
    try:
        host = job_context.first_host(text_of(data))
    except ContextError as error:
        str(error)
        return
    assert host and not set(host) & set("[],")


def fuzz_context(data):
    """What slurmd and slurmstepd hand over: variables between NULs."""
    environment = environ.parse(data)
    for read in (job_context.of_job, lambda told: job_context.of_task(told, 1000)):
        try:
            told = read(environment)
        except ContextError:
            continue
        assert told.job_id >= 0 and "/" not in told.cluster and told.cluster not in (".", "..")


def fuzz_plugstack(data):
    """Of a line its arguments; of slurm.conf and plugstack.conf the lines."""
    lines = text_of(data).split("\n")
    conf_file.lines = lambda _path: lines
    glob.glob = lambda _pattern: []  # what an include names
    try:
        plugstack.plugstack_path(NOWHERE)
        conf_file.cluster_name(NOWHERE)
    except PlugstackError:
        pass
    try:
        options = plugstack.read(NOWHERE)
    except PlugstackError as error:
        assert is_one_line(printable(error.message))  # a path may hold anything; each reader escapes
        return
    assert options.config_path.is_absolute() and options.state_dir.is_absolute()
    assert ".." not in options.state_dir.parts
    assert 0 < options.acquire_timeout_s <= plugstack.MAX_TIMEOUT_S
    exports.export_lines({name: value for name, value in options.env.items() if len(value) < 1000})


def fuzz_config(data):
    try:
        found = config_file.parse(data.decode("utf-8", "replace"))
    except ConfigError as error:
        assert is_one_line(error.message)
        return
    for name, resource in found.resources.items():
        assert name and "=" not in name and is_one_line(name)
        assert resource.slurm.capacity >= 1
        # A name that begins with a blank cannot be asked for; where a pattern fits it, it is not acquired.
        if name == name.strip() and all(len(value) < 1000 for value in resource.environment.values()):
            exports.export_lines({f"{name}_{key}": value for key, value in resource.environment.items()})


def fuzz_record(data):
    try:
        found = record.decode(data, NOWHERE)
    except RecordFormatError as error:
        str(error)
        return
    repr(found)
    again = record.decode(record.encode(found), NOWHERE)
    assert repr(again) == repr(found)


def fuzz_exports(data):
    try:
        found = exports.parse(text_of(data))
    except ExportsError as error:
        str(error)
        return
    try:
        text = exports.render(found)
    except ExportsError:
        return
    assert exports.parse(text).variables == found.variables
    try:
        terms = selection.parse(found.variables.get("QRMI_SLURM_QPU", "a"))
        narrowed = exports.narrowed(found.variables, terms)
    except (ExportsError, SelectionError):
        return
    exports.export_lines(narrowed)


def fuzz_stored_secret(data):
    try:
        text = stored_secrets._text(data)
    except ValueError:
        return
    assert text and is_one_line(text)


TARGETS = {name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")}

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
