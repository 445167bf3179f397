"""docs/environment.md: what a task sees. Which variables there are is found out by running the hooks' own code.

A variable that the code makes and no sentence here tells of is an error, and so is a sentence without its variable.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final
from unittest import mock

from made.text import CHECKOUT, made_from, table, wrapped
from qrmi_slurm import names
from qrmi_slurm.calls import backend, installed
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.resource_types import KNOWN, PREFIX_SUCCESSORS, ResourceType
from qrmi_slurm.deadline import HOOK_GRACE_S, Deadline
from qrmi_slurm.hooks import acquire, task_prolog
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import job_context, selection
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import exports
from qrmi_slurm.state.job_folder import JobFolder

_SOURCES: Final = "qrmi_slurm/names.py, config/resource_types.py and what the hooks do"

# The example that the hooks are run for: a QPU of a renamed type, found by a pattern, and the site's own variable.
_QPU: Final = "name"
_TYPE: Final = "qiskit-runtime-service"
_SITES_OWN: Final = "NAME"
_JOB_ID: Final = 12
_TIME_LIMIT_S: Final = 300

_OF_JOB: Final[Mapping[tuple[str, ...], str]] = {
    (names.QRMI_JOB_QPU_RESOURCES, names.SLURM_JOB_QPU_RESOURCES): (
        "the QPUs that the job holds, in the order of `--qpu`, comma separated"
    ),
    (names.QRMI_JOB_QPU_TYPES,): "their types, same order, under the names that the installed QRMI knows",
    (names.SLURM_JOB_QPU_TYPES,): "the same, as configured",
    (names.QRMI_JOB_ID, names.QRMI_JOB_UID): (
        "Slurm's job id (of the component, in a heterogeneous job), and the uid of the job's owner"
    ),
    (names.RUST_LOG,): "from srun's verbosity ({levels}), unless the user or the site set one",
    (_SITES_OWN,): f"the site's value, from `--env:{_SITES_OWN}=VALUE` on the plugin's line",
}
_OF_QPU: Final[Mapping[str, str]] = {
    "<VARIABLE>": "each variable of the resource's `environment`; the user's own value wins",
    names.ACQUISITION_TOKEN: "what QRMI's acquire returned",
    names.TIMEOUT_SECONDS: "the job's time limit in seconds; {unlimited} without one",
}
_MARKS: Final[Mapping[str, str]] = {
    names.QRMI_SLURM_QPU: "the step's `--qpu`",
    names.QRMI_SLURM_BROKER: "the node that the job's [credential broker](broker.md) is on, where it has one",
    names.QRMI_SLURM_CHOICES: "what each term of `--qpu` that left the choice open came to: `TERM=NAME,...`",
    names.QRMI_SLURM_JOB_ID: "the id of the component's own job, in further components of a heterogeneous job",
    names.QRMI_SLURM_RUST_LOG: "the level that we exported, to tell it from the user's",
    names.QRMI_SLURM_STATE_DIR: "where TaskProlog finds the job's exports",
}
# Those that the stub sets, in slurmstepd: it is no Python, and nothing here can run it.
_STUBS: Final = frozenset({names.QRMI_SLURM_QPU, names.QRMI_SLURM_JOB_ID, names.QRMI_SLURM_STATE_DIR})
# What the example's job has not.
_OF_BROKER: Final = frozenset({names.QRMI_SLURM_BROKER})
_SRUN_VERBOSITY: Final = {"--quiet": 2, "": 3, "-v": 4, "-vv": 5}


def page() -> str:
    """Return the page."""
    made = _made_by_the_hooks()
    _require_all(made)
    lines = [
        "# The environment of a task",
        "",
        made_from(_SOURCES),
        "",
        "What qrmi-slurm puts into the environment of each task of a job with `--qpu`, and takes out of one without.",
        "",
        "## Of the job",
        "",
        *table(("variable", "value"), [(_code(keys), text.format(levels=_levels())) for keys, text in _OF_JOB.items()]),
        "",
        "A step's own `srun --qpu` cuts the first three rows down to its QPUs.",
        "",
        "## Of each QPU",
        "",
        *table(
            ("variable", "value"),
            [
                (_code([f"<name>_{key}"]), text.format(unlimited=names.UNLIMITED_TIMEOUT_S))
                for key, text in _OF_QPU.items()
            ],
        ),
        "",
        *wrapped(
            "`<name>` is the resource's name as it stands. Renamed variables stand there under both of their names, "
            + ", ".join(f"`{old}X` as `{new}X`" for old, new in PREFIX_SUCCESSORS.items())
            + ", so that a program finds what its QRMI reads."
        ),
        "",
        *wrapped(_limits()),
        "",
        "## Marks of our own",
        "",
        *table(("variable", "value"), [(_code([key]), text) for key, text in _MARKS.items()]),
        "",
        *wrapped(
            f"Slurm itself shows what the job was submitted with as `SLURM_SPANK_...`: `{names.SLURM_SPANK_QRMI_QPU}`, "
            "and the user's own variables."
        ),
        "",
        "## The variables of each type",
        "",
        *wrapped(
            '"Required" means that QRMI cannot do without; users may bring them. An address that a user changes makes '
            "all of the site's values of that QPU unused. A secret is masked wherever the suite shows anything."
        ),
    ]
    for known in KNOWN.values():
        lines += ["", f"### `{known.name}`", "", *_of_type(known)]
    lines += ["", "Any other type that the installed QRMI knows works with its variables as they stand."]
    return "\n".join(lines) + "\n"


def _of_type(known: ResourceType) -> list[str]:
    lines = []
    if known.successor:
        lines += [f"Deprecated; today's name is `{known.successor}`.", ""]
    if known.note:
        lines += [*wrapped(known.note), ""]
    rows = []
    for variable in sorted(known.variables):
        kinds = ["required" if variable in known.required else "optional"]
        kinds += ["secret"] if variable in known.secrets else []
        kinds += ["address"] if variable in known.endpoints else []
        rows.append((_code([variable]), ", ".join(kinds)))
    return [*lines, *table(("variable", ""), rows)]


def _code(spans: Iterable[str]) -> str:
    return ", ".join(f"`{span}`" for span in spans)


def _levels() -> str:
    words = [f"`{option}` {exports.rust_log_level(debug)}" for option, debug in _SRUN_VERBOSITY.items() if option]
    return f"{exports.rust_log_level(_SRUN_VERBOSITY[''])}; {', '.join(words)}"


def _limits() -> str:
    users_bytes, name_bytes = _stubs_number("VALUE_MAX_BYTES"), _stubs_number("VARIABLE_MAX_BYTES")
    return (
        f"Values are one line each. A user's have at most {users_bytes // 1024} KiB, their names at most {name_bytes} "
        f"bytes; the config's have at most {exports.MAX_VARIABLE_BYTES // 1024} KiB together with their names. A "
        f"`--qpu` list has at most {selection.MAX_SELECTION_BYTES} bytes."
    )


def _stubs_number(name: str) -> int:
    """Return a constant of the stub's source: a number, or a number less the size of a string."""
    source = (CHECKOUT / "cli_filter" / "variables.h").read_text()
    plain = re.search(rf"^#define {name} (\d+)U$", source, re.MULTILINE)
    if plain:
        return int(plain[1])
    less = re.search(rf'^#define {name} \((\d+)U - sizeof "([^"]*)"\)$', source, re.MULTILINE)
    if not less:
        raise LookupError(f"variables.h does not define {name} as this page knows it")
    return int(less[1]) - len(less[2]) - 1


# --- what the hooks make ------------------------------------------------------------------------------------


def _made_by_the_hooks() -> set[str]:
    """Return the names of all variables that Prolog and TaskProlog make for the example, QRMI's part played here."""
    known = KNOWN[_TYPE]
    site = {variable: "value" for variable in known.required}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "qrmi_config.json"
        config.write_text(json.dumps({"resources": [{"name": _QPU, "type": _TYPE, "environment": site}]}))
        (folder / "slurm.conf").touch()
        (folder / "plugstack.conf").write_text(f"optional spank_qrmi.so {config} --state-dir={folder}/state\n")
        options = SiteOptions(config, folder / "state", env={_SITES_OWN: "value"})
        selected = f"{_QPU[:-1]}*"
        hooks = {
            names.SLURM_CONF: str(folder / "slurm.conf"),
            names.SLURM_JOB_ID: str(_JOB_ID),
            names.SLURM_JOB_UID: str(os.getuid()),
            names.SLURMD_NODENAME: "n1",
            names.SLURM_JOB_START_TIME: "0",
            names.SLURM_JOB_END_TIME: str(_TIME_LIMIT_S),
            names.SPANK_QRMI_QPU: selected,
        }
        job = job_context.of_job(hooks)
        place = JobFolder(options.state_dir, job.cluster, job.job_id)
        place.create()
        with (
            mock.patch.object(installed, "known_members", lambda: ("IBMQiskitRuntimeService",)),
            mock.patch.object(backend, "run", _answer),
            place.locked(1, make=True),
        ):
            log = mock.create_autospec(HookLog, instance=True)
            result = acquire.acquire(
                job, HookRun(options, place, log, Deadline.after(options.acquire_timeout_s + HOOK_GRACE_S))
            )
            if result is None or not result.is_ready:
                raise LookupError(f"the example's job got no QPU: {result}")
            place.write_exports(exports.render(result), job.uid)
        stubs = {names.SLURM_SPANK_QRMI_QPU: selected, names.QRMI_SLURM_QPU: selected}
        outcome = task_prolog.task_prolog(hooks | stubs)
    return {line.partition(" ")[2].partition("=")[0] for line in outcome.lines if line.startswith("export ")}


def _answer(calls: Sequence[Call], timeout_s: float, on_answers: Callable[[Sequence[Answer]], None]) -> None:
    """Stand for QRMI: every call ends well, with a token."""
    on_answers([Answer(call, Verdict.DONE, Secret("token"), "", 0.0, ()) for call in calls])


def _require_all(made: set[str]) -> None:
    """Make sure that the page tells of what is made, and of nothing else.

    Raises:
        LookupError: it does not.
    """
    of_type = {
        names.of_resource(_QPU, variable)
        for variable in resource_types.with_successors({variable: "" for variable in KNOWN[_TYPE].required})
    }
    of_qpu = {names.of_resource(_QPU, key) for key in _OF_QPU if not key.startswith("<")}
    told = {key for keys in _OF_JOB for key in keys} | of_type | of_qpu | (_MARKS.keys() - _STUBS - _OF_BROKER)
    if made != told:
        raise LookupError(f"docs/made/environment.py and the hooks differ in {sorted(made ^ told)}")
    marks = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("QRMI_SLURM_")}
    if marks != _MARKS.keys():
        raise LookupError(f"docs/made/environment.py and names.py differ in {sorted(marks ^ _MARKS.keys())}")
