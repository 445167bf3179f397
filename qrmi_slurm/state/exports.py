"""The exports: the environment and notes that Prolog leaves for a job's tasks, and what a task or step gets of them.

The file is a script of assignments for sh(1), which TaskProlog's shell runs as the user. It contains the job's id and
the lines that TaskProlog prints (slurm.conf: `export NAME=value`, `print text`). The last line shows that it is
complete.
"""

import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from qrmi_slurm import names
from qrmi_slurm.errors import ExportsError
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.slurm.selection import MAX_SELECTION_BYTES, Term
from qrmi_slurm.text import is_one_line, printable

# 64 QPUs with a dozen variables each take 100 kB; the rest is room for long values.
_MAX_EXPORTS_BYTES: Final = 16 * 1024 * 1024

# execve(2): MAX_ARG_STRLEN, including name, '=' and NUL; slurmstepd silently drops longer variables.
MAX_VARIABLE_BYTES: Final = 128 * 1024

# SRUN_DEBUG without -v or -q.
_USUAL_SRUN_DEBUG: Final = 3

# The beginning of our lines in a job's output.
PREFIX: Final = "qrmi-slurm"

# The beginning of the note about a session that ends before its job may have to.
EARLY_END: Final = f"{PREFIX}: the session on "

_FINGERPRINT_PRIME: Final = 2**56 - 5

# The number goes up by one when an older version would misread the file. Further assignments before the last line may
# be added without, up to 16: a version that does not know them leaves them out.
_HEAD: Final = f"# {PREFIX} exports 3"
_QUOTE_IN_QUOTES: Final = "'\\''"
# Possessive: without backtracking, matching 16 MiB takes no extra memory.
_QUOTED: Final = r"'([^']*+(?:'\\''[^']*+)*+)'"
_FILE: Final = (
    rf"{_HEAD}\njob=([0-9]{{1,20}}) restart=([0-9]{{1,20}}) start=([0-9]{{0,20}}) outcome=(ready|failed)\n"
    rf"selection={_QUOTED}\nheld={_QUOTED}\nnotes={_QUOTED}\nlines={_QUOTED}\nlevel={_QUOTED}\n(?:ends={_QUOTED}\n)?"
    r"(?:[a-z_]{1,40}='[^']*+(?:'\\''[^']*+)*+'\n){0,16}by=(?:shell|python)\n"
)


class Exports(NamedTuple):
    """The environment and notes for a job's tasks.

    Args:
        job_id: Slurm's id.
        restart_count: which run of the job they are for.
        is_ready: whether the job has its QPUs; if not, its tasks must not run.
        notes: sentences for the job's output; if it is not ready, the reasons.
        variables: the environment, including secrets; never shown in a repr.
        start_s: when the job started, by slurmctld's clock, in seconds since the epoch; None if slurmctld did not say.
        selection: the value of the job's `--qpu`.
        ends_s: by the QPU's name, when its session ends; seconds since the epoch. It is for people, not for tasks, and
            without QPUs whose credential broker opens another session.
    """

    job_id: int
    restart_count: int
    is_ready: bool
    notes: tuple[str, ...]
    variables: Mapping[str, str] = MappingProxyType({})
    start_s: int | None = None
    selection: str = ""
    ends_s: Mapping[str, float] = MappingProxyType({})

    def __repr__(self) -> str:
        return masked_repr(self, "variables")

    def is_for(self, restart_count: int, selection: str) -> bool:
        """Tell whether they are for this run of the job and this `--qpu`; its start time is compared elsewhere."""
        return (self.restart_count, self.selection) == (restart_count, cut_selection(selection))


def moment(epoch_s: float) -> str:
    """Return a moment for a job's output, by this node's clock and with its time zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:.0f}"


def cut_selection(text: str) -> str:
    """Return the value of a `--qpu` as the exports have it."""
    return printable(text, MAX_SELECTION_BYTES)


def render(exports: Exports) -> str:
    """Return the text of the exports file.

    Raises:
        ExportsError: a name or value would begin a new line and so another directive.
    """
    lines = export_lines(exports.variables)
    level = rust_log_level(_USUAL_SRUN_DEBUG)
    levels = export_lines({names.RUST_LOG: level, names.QRMI_SLURM_RUST_LOG: level})
    assignments = {
        "selection": cut_selection(exports.selection),
        "held": exports.variables.get(names.QRMI_JOB_QPU_RESOURCES, ""),
        "notes": _joined([f"print {printable(note, 1000)}" for note in exports.notes]),
        "lines": _joined(lines),
        "level": _joined(levels if names.RUST_LOG not in exports.variables else []),
    }
    if exports.ends_s:
        assignments["ends"] = ",".join(f"{name}={ends_s:.0f}" for name, ends_s in exports.ends_s.items())
    # With a broker, Python has to compare nodes and proxies.
    by_shell = exports.is_ready and names.QRMI_SLURM_BROKER not in exports.variables
    outcome = "ready" if exports.is_ready else "failed"
    start = "" if exports.start_s is None else exports.start_s
    whose = f"job={exports.job_id} restart={exports.restart_count} start={start} outcome={outcome}"
    quoted = [f"{name}={_quoted(value)}" for name, value in assignments.items()]
    return "\n".join([_HEAD, whose, *quoted, f"by={'shell' if by_shell else 'python'}", ""])


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    """Return `text` quoted for sh(1)."""
    return "'" + text.replace("'", _QUOTE_IN_QUOTES) + "'"


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Return `export NAME=value` lines.

    Raises:
        ExportsError: a name or value is invalid, too long, or not one line.
    """
    for name, value in variables.items():
        # _proc_stdout() in slurmstepd/task.c splits at the first '=', and drops blanks before it.
        if not name or "=" in name or not is_one_line(name) or name != name.strip():
            raise ExportsError(f"{printable(name)} is not a valid variable name")
        if not is_one_line(value):
            raise ExportsError(f"the value of {printable(name)} contains a control character")
        try:
            size_bytes = len(f"{name}={value}\0".encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            raise ExportsError(f"the value of {printable(name)} is not valid Unicode") from None
        if size_bytes >= MAX_VARIABLE_BYTES:
            raise ExportsError(f"the value of {printable(name)} is too long for an environment ({size_bytes} bytes)")
    return [f"export {name}={value}" for name, value in variables.items()]


def fingerprint(name: str, value: str) -> str:
    """Return what marks a value of the site in a task's environment, so that it is not taken for the user's own.

    It is `NAME=VALUE` as a number in base 256, modulo the largest prime below 2^56: no secret, since whoever sees it
    sees the value as well. The plugin computes the same at submission (cli_filter/variables.c).
    """
    return f"{int.from_bytes(f'{name}={value}'.encode('utf-8', 'surrogateescape')) % _FINGERPRINT_PRIME:014x}"


def parse(text: str) -> Exports:
    """Return the exports in a file's text.

    Raises:
        ExportsError: the text is incomplete, or not from Prolog.
    """
    match = re.fullmatch(_FILE, text)
    if match is None:
        is_ours = text.startswith(_HEAD) or _HEAD.startswith(text)
        raise ExportsError("is cut off or changed" if is_ours else "is not an exports file of this version")
    job_id, restart_count, start, outcome, selection, _, noted, exported, _, ends = match.groups()
    variables = {}
    for rest in _unjoined(exported, "export "):
        name, equals, value = rest.partition("=")
        if not equals:
            raise ExportsError("contains a line that qrmi-slurm did not write")
        variables[name] = value
    return Exports(
        int(job_id),
        int(restart_count),
        outcome == "ready",
        tuple(_unjoined(noted, "print ")),
        variables,
        start_s=int(start) if start else None,
        selection=selection.replace(_QUOTE_IN_QUOTES, "'"),
        ends_s=dict(_ends(ends or "")),
    )


def _ends(text: str) -> Iterator[tuple[str, float]]:
    for word in text.split(",") if text else ():
        name, equals, seconds = word.rpartition("=")
        if not equals or not re.fullmatch(r"[0-9]{1,15}", seconds):
            raise ExportsError("contains a line that qrmi-slurm did not write")
        yield name, float(seconds)


def _unjoined(quoted: str, directive: str) -> list[str]:
    """Return each line of a quoted text without its directive."""
    lines = quoted.replace(_QUOTE_IN_QUOTES, "'").split("\n")
    if lines[-1] or not all(line.startswith(directive) for line in lines[:-1]):
        raise ExportsError("contains a line that qrmi-slurm did not write")
    return [line.removeprefix(directive) for line in lines[:-1]]


def read(path: Path, uid: int, job_id: int) -> Exports:
    """Read a job's exports as its user.

    Args:
        path: the file.
        uid: the user id that must own it.
        job_id: the job that it must be for.

    Raises:
        FileNotFoundError: it does not exist (yet).
        ExportsError: it is incomplete, or belongs to another user or job.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise ExportsError(
            f"cannot read {path}: {error.strerror}", "an admin has to let users enter the folders above it (chmod a+x)"
        ) from error
    except OSError as error:
        raise ExportsError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            raise ExportsError(f"{path} does not belong to uid {uid}")
        content = b""
        while len(content) < _MAX_EXPORTS_BYTES and (chunk := os.read(fd, _MAX_EXPORTS_BYTES)):
            content += chunk
    finally:
        os.close(fd)
    try:
        exports = parse(content.decode("utf-8", "surrogateescape"))
    except ExportsError as error:
        raise ExportsError(f"{path} {error.message}") from None
    if exports.job_id != job_id:
        raise ExportsError(f"{path} belongs to job {exports.job_id}")
    return exports


def assigned(variables: Mapping[str, str], terms: Sequence[Term]) -> list[str | None]:
    """Return the job's QPU for each term of a step's `--qpu`; None for a term without a match.

    Args:
        variables: the job's environment.
        terms: the terms of the step's `--qpu`, in order.
    """
    held = variables.get(names.QRMI_JOB_QPU_RESOURCES, "").split(",")
    types = variables.get(names.QRMI_JOB_QPU_TYPES, "").split(",")
    pairs = [pair.rpartition("=")[::2] for pair in variables.get(names.QRMI_SLURM_CHOICES, "").split(",")]
    found: dict[int, str] = {}
    for place, term in sorted(enumerate(terms), key=lambda item: item[1].is_choice and item[1].text not in held):
        candidates = [name for text, name in pairs if text == term.text]  # Prolog's choice for the same term
        candidates += [name for name in held if term.text == name or (term.is_choice and term.fits_name(name))]
        if term.prefix:
            from qrmi_slurm.config import resource_types  # few tasks need it

            candidates += [
                name for name, type_ in zip(held, types, strict=False) if resource_types.are_one(type_, term.pattern)
            ]
        name = next((name for name in candidates if name in held and name not in found.values()), None)
        if name is not None:
            found[place] = name
    return [found.get(place) for place in range(len(terms))]


def narrowed(variables: Mapping[str, str], terms: Sequence[Term]) -> dict[str, str]:
    """Return the lists of names and types, under each of their variables, with only the QPUs of a step.

    Args:
        variables: the job's environment.
        terms: the terms of the step's `--qpu`, in order.

    Raises:
        ExportsError: the job does not hold one of the QPUs.
    """
    held = variables.get(names.QRMI_JOB_QPU_RESOURCES, "").split(",")
    chosen = assigned(variables, terms)
    foreign = [term.text for term, name in zip(terms, chosen, strict=True) if name is None]
    if foreign:
        raise ExportsError(
            f"this job does not hold {printable(', '.join(foreign))}; it holds {printable(', '.join(held))}"
        )
    places = [held.index(name) for name in chosen if name is not None]
    result = {}
    for name in LISTS:
        items = variables.get(name, "").split(",")
        if len(items) == len(held):
            result[name] = ",".join(items[place] for place in places)
    return result


# Parallel lists: the n-th type is that of the n-th resource.
LISTS: Final = (
    names.QRMI_JOB_QPU_RESOURCES,
    names.QRMI_JOB_QPU_TYPES,
    names.SLURM_JOB_QPU_RESOURCES,
    names.SLURM_JOB_QPU_TYPES,
)


def rust_log_level(srun_debug: int) -> str:
    """Return QRMI's log level for srun's verbosity (SRUN_DEBUG): 2 error, 3 info, 4 debug, 5 and up trace."""
    if srun_debug <= 2:
        return "error"
    return {3: "info", 4: "debug"}.get(srun_debug, "trace")
