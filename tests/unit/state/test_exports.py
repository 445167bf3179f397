"""The exports: from Prolog's file to the environment that slurmstepd gives a task."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import ExportsError
from qrmi_slurm.slurm import selection
from qrmi_slurm.state import exports
from qrmi_slurm.state.exports import Exports

# setenvf() in src/common/env.c: the limit for name, value, '=' and NUL together; longer variables are dropped with
# only a line in slurmd's log.
MAX_ENV_STRLEN = 32 * 4096
BLANKS = b" \t\n\v\f\r"  # isspace(3) in the C locale


def slurmstepd(output: bytes, environment: dict[bytes, bytes]) -> bytes:
    """Do what `_proc_stdout` in src/slurmd/slurmstepd/task.c does with TaskProlog's output; return the job's stdout."""
    printed = b""
    buffer = output.partition(b"\0")[0]
    at = 0
    while at < len(buffer):
        newline = buffer.find(b"\n", at)
        end = newline if newline >= 0 else len(buffer)
        if buffer.startswith(b"print ", at):
            begin = _skip_blanks(buffer, at + 6)
            printed += buffer[begin : end + 1]
        elif buffer.startswith(b"export ", at):
            begin = _skip_blanks(buffer, at + 7)
            equal = buffer.find(b"=", begin)
            if 0 <= equal <= end:
                name, value = buffer[begin:equal].rstrip(BLANKS), buffer[equal + 1 : end]
                if name and len(name) + len(value) + 2 < MAX_ENV_STRLEN:
                    environment[name] = value
        elif buffer.startswith(b"unset ", at):
            begin = _skip_blanks(buffer, at + 6)
            environment.pop(buffer[begin:end].rstrip(BLANKS), None)
        at = end + 1
    return printed


def _skip_blanks(buffer, at):
    while at < len(buffer) and buffer[at : at + 1] in [bytes([blank]) for blank in BLANKS]:
        at += 1
    return at


def encoded(text):
    return text.encode("utf-8", "surrogateescape")


def printed_by_shell(rendered, shell):
    """Return what TaskProlog's shell would print of an exports file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(encoded(rendered))
        file.flush()
        script = '. "$1" && printf %s "$notes$lines"'
        return subprocess.run([shell, "-c", script, shell, file.name], capture_output=True, check=True).stdout


def task_environment(rendered, shell="dash"):
    environment = {}
    slurmstepd(printed_by_shell(rendered, shell), environment)
    return environment


texts = st.text(max_size=20) | st.binary(max_size=12).map(lambda b: b.decode("utf-8", "surrogateescape"))
nasty = st.sampled_from(
    [
        *("", " ", "a b", "a=b", "x\nexport LD_PRELOAD=/evil.so", "\rprint x", "\x0bunset PATH", "by=python", "="),
        "\x85",
        *("'", "'\\''", "';exit 9;'", "$(exit 9)", "`exit 9`", "${PATH}", "\\", '"', "!!", "~", "\udc81\udc88"),
    ]
)
variables = st.dictionaries(texts | nasty, texts | nasty, max_size=4)


@pytest.mark.parametrize("shell", ["dash", "bash"])
@given(variables, st.lists(texts | nasty, max_size=3).map(tuple))
def test_a_tasks_environment_is_what_was_meant_or_an_error(shell, wanted, notes):
    try:
        rendered = exports.render(Exports(12, 0, is_ready=True, notes=notes, variables=wanted))
    except ExportsError:
        return
    assert task_environment(rendered, shell) == {encoded(name): encoded(value) for name, value in wanted.items()}


@given(st.lists(texts | nasty, max_size=3).map(tuple))
def test_notes_are_never_more_than_text(notes):
    rendered = exports.render(Exports(12, 0, is_ready=False, notes=notes))
    environment = {b"PATH": b"/bin"}
    printed = slurmstepd(printed_by_shell(rendered, "dash"), environment)
    assert environment == {b"PATH": b"/bin"}
    assert printed.count(b"\n") <= len(notes)


@given(variables, st.lists(texts, max_size=3), st.integers(0, 2**32), st.none() | st.integers(0, 99), st.booleans())
def test_rendered_exports_are_parsed_back(wanted, notes, job_id, number, is_ready):
    shown = tuple(exports.printable(note, 1000) for note in notes)
    before = Exports(job_id, number or 0, is_ready, shown, wanted, start_s=number)
    try:
        text = exports.render(before)
    except ExportsError:
        return
    assert exports.parse(text) == before


def test_the_file_is_a_script_of_assignments():
    text = exports.render(Exports(12, 3, is_ready=True, notes=("it's",), variables={"A": "1"}))
    assert text == (
        "# qrmi-slurm exports 3\njob=12 restart=3 start= outcome=ready\nselection=''\nheld=''\n"
        "notes='print it'\\''s\n'\n"
        "lines='export A=1\n'\nlevel='export RUST_LOG=info\nexport QRMI_SLURM_RUST_LOG=info\n'\nby=shell\n"
    )


@pytest.mark.parametrize(
    ("is_ready", "variables", "by"),
    [(True, {}, "shell"), (False, {}, "python"), (True, {"QRMI_SLURM_BROKER": "n1"}, "python")],
)
def test_exports_that_python_has_to_examine_are_not_for_a_shell(is_ready, variables, by):
    assert exports.render(Exports(12, 0, is_ready, (), variables)).endswith(f"\nby={by}\n")


@pytest.mark.parametrize("name", ["", "A=B", "A\n", " A", "A ", "A\t", "\x00"])
def test_a_name_that_slurmstepd_would_change_is_refused(name):
    with pytest.raises(ExportsError):
        exports.export_lines({name: SECRET})


@pytest.mark.parametrize(
    "value", [f"{SECRET}\n", f"{SECRET}\nexport X=1", f"{SECRET}\r", f"{SECRET}\x00", f"{SECRET}\u2028"]
)
def test_a_value_of_several_lines_is_refused_without_showing_it(value):
    with pytest.raises(ExportsError, match="value of A") as caught:
        exports.export_lines({"A": value})
    assert SECRET not in str(caught.value)


def test_a_value_that_slurmstepd_would_drop_is_refused():
    """The task would start without the variable, with only a line in slurmd's log."""
    longest = "x" * (MAX_ENV_STRLEN - len("A") - 3)
    assert task_environment(exports.render(Exports(1, 0, is_ready=True, notes=(), variables={"A": longest})))
    with pytest.raises(ExportsError, match="A"):
        exports.export_lines({"A": longest + "x"})


def test_a_value_that_no_environment_can_hold_is_refused():
    with pytest.raises(ExportsError):
        exports.export_lines({"A": "\ud800"})


WHOLE = exports.render(Exports(12, 0, is_ready=True, notes=(), variables={"A": "1"}))


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_file_that_is_cut_off_anywhere_is_refused(length):
    with pytest.raises(ExportsError):
        exports.parse(WHOLE[:length])


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace("exports 3", "exports 4"),
        WHOLE.replace("job=12", "job=x"),
        WHOLE.replace("ready", "perhaps"),
        WHOLE.replace("export A=1", "unset PATH"),
        WHOLE.replace("export A=1", "export A"),
        WHOLE.replace("export A=1", ""),
        WHOLE.replace("export A=1\n", "export A=1"),
        WHOLE.replace("export A=1", "export A='1"),
        WHOLE.replace("notes=''", "notes='hello\n'"),
        WHOLE.replace("held=''", "held=$(id)"),
        WHOLE + "B=2\n",
    ],
)
def test_a_file_that_was_changed_is_refused(text):
    with pytest.raises(ExportsError):
        exports.parse(text)


def test_16_mib_of_quotes_take_no_more_memory_than_other_text():
    """Root reads the file again if slurmd runs Prolog again, and its owner may have changed it."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (500_000_000,) * 2)\n"
        "from qrmi_slurm.state import exports\n"
        f'text = {WHOLE!r}.replace("lines=\'", "lines=\'" + "\'\\\\\'\'" * 4_000_000)\n'
        "try:\n    exports.parse(text)\n"
        "except exports.ExportsError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "contains a line that qrmi-slurm did not write\n", done.stderr[-500:]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "exports"
    path.write_text(WHOLE)
    return path


def test_what_a_newer_version_has_added_is_left_out():
    """To the shell they are more assignments."""
    text = WHOLE.replace("by=shell", "more='it'\\''s\nnew'\nother=''\nby=shell")
    assert exports.parse(text) == exports.parse(WHOLE)
    assert printed_by_shell(text, "dash") == printed_by_shell(WHOLE, "dash")


def test_exports_are_for_one_run_and_one_selection():
    mine = exports.parse(exports.render(Exports(12, 1, True, (), selection="it's\n")))
    assert mine.is_for(1, "it's\n")
    assert not mine.is_for(0, "it's\n")
    assert not mine.is_for(1, "its")


def test_a_jobs_own_file_is_read(file):
    assert exports.read(file, os.getuid(), 12).variables == {"A": "1"}


def test_a_missing_file_has_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        exports.read(tmp_path / "exports", os.getuid(), 12)


def test_another_users_file_is_refused(file):
    os.chown(file, 65534, -1)
    with pytest.raises(ExportsError, match="does not belong to uid"):
        exports.read(file, os.getuid(), 12)


def test_another_jobs_file_is_refused(file):
    with pytest.raises(ExportsError, match="belongs to job 12"):
        exports.read(file, os.getuid(), 13)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/hosts"), os.mkfifo, Path.mkdir])
def test_a_link_a_pipe_or_a_folder_is_refused_at_once(tmp_path, make):
    make(tmp_path / "exports")
    with pytest.raises(ExportsError):
        exports.read(tmp_path / "exports", os.getuid(), 12)


def test_a_file_of_any_bytes_is_an_error(tmp_path):
    (tmp_path / "exports").write_bytes(bytes(range(256)))
    with pytest.raises(ExportsError, match="exports is not an exports file"):
        exports.read(tmp_path / "exports", os.getuid(), 12)


JOB = {
    "QRMI_JOB_QPU_RESOURCES": "a,b,c",
    "QRMI_JOB_QPU_TYPES": "ta,tb,tc",
    "SLURM_JOB_QPU_RESOURCES": "a,b,c",
    "SLURM_JOB_QPU_TYPES": "ta,old,tc",
    "a_QRMI_X": "1",
}


def test_a_step_gets_its_qpus_in_its_own_order_with_their_types():
    assert exports.narrowed(JOB, selection.parse("c,b")) == {
        "QRMI_JOB_QPU_RESOURCES": "c,b",
        "QRMI_JOB_QPU_TYPES": "tc,tb",
        "SLURM_JOB_QPU_RESOURCES": "c,b",
        "SLURM_JOB_QPU_TYPES": "tc,old",
    }


CHOSEN = {
    "QRMI_JOB_QPU_RESOURCES": "ibm_a,garnet,ibm_b",
    "QRMI_JOB_QPU_TYPES": "ibm-quantum-compute-service,iqm-server,ibm-quantum-compute-service",
    "QRMI_SLURM_CHOICES": "any:ibm_*=ibm_b,ibm_inst1=ibm_a",
}


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ("any:ibm_*", ["ibm_b"]),
        ("ibm_inst1", ["ibm_a"]),
        ("ibm_*", ["ibm_a"]),
        ("ibm_*,ibm_*", ["ibm_a", "ibm_b"]),
        ("ibm_*,ibm_a", ["ibm_b", "ibm_a"]),
        ("any:iqm-server", ["garnet"]),
        ("any:qiskit-runtime-service", ["ibm_a"]),
        ("least-busy:IBMQuantumComputeService", ["ibm_a"]),
        ("any:pasqal-cloud", [None]),
        ("ibm_*,ibm_*,ibm_*", ["ibm_a", "ibm_b", None]),
        ("ibm_c", [None]),
    ],
)
def test_a_steps_choice_is_among_the_jobs_qpus(wanted, got):
    """Prolog's choice for the same term comes first; each QPU is given to one term only."""
    assert exports.assigned(CHOSEN, selection.parse(wanted)) == got


@pytest.mark.parametrize("held", [JOB, {}])
def test_a_step_cannot_have_a_qpu_that_the_job_does_not_hold(held):
    with pytest.raises(ExportsError, match="this job does not hold z"):
        exports.narrowed(held, selection.parse("z"))


def test_the_sentence_about_a_foreign_qpu_lists_the_jobs_own():
    with pytest.raises(ExportsError, match="it holds a, b, c"):
        exports.narrowed(JOB, selection.parse("a,z"))


@pytest.mark.parametrize(
    ("srun_debug", "level"),
    [(0, "error"), (1, "error"), (2, "error"), (3, "info"), (4, "debug"), (5, "trace"), (6, "trace"), (99, "trace")],
)
def test_qrmis_level_follows_sruns(srun_debug, level):
    assert exports.rust_log_level(srun_debug) == level


def test_a_repr_shows_no_value():
    assert SECRET not in repr(Exports(1, 0, is_ready=True, notes=(), variables={"A": SECRET}))
