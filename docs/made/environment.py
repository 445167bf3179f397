"""docs/environment.md: what a task sees. The list of variables comes from running the hooks' own code.

A variable that the hooks export and this module does not describe is an error, and so is the reverse.
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
from qrmi_slurm.calls import backend, environment, installed
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.resource_types import KNOWN, PREFIX_SUCCESSORS, ResourceType
from qrmi_slurm.deadline import HOOK_GRACE_S, Deadline
from qrmi_slurm.hooks import acquire, task_prolog
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import job_context, plugstack, selection
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import exports
from qrmi_slurm.state.job_folder import JobFolder

_SOURCES: Final = "qrmi_slurm/names.py, config/resource_types.py and the hooks"

# The hooks run for this example: a QPU of a renamed type, selected by a pattern, and a variable set by the site.
_QPU: Final = "name"
_TYPE: Final = "qiskit-runtime-service"
_SITES_OWN: Final = "NAME"
_JOB_ID: Final = 12
_TIME_LIMIT_S: Final = 300

_OF_JOB: Final[Mapping[tuple[str, ...], str]] = {
    (names.QRMI_JOB_QPU_RESOURCES, names.SLURM_JOB_QPU_RESOURCES): (
        "the QPUs that the job holds, in the order of `--qpu`, separated by commas"
    ),
    (names.QRMI_JOB_QPU_TYPES,): "their types, in the same order, by the names that the installed QRMI knows",
    (names.SLURM_JOB_QPU_TYPES,): "the same, by the names in the config",
    (names.QRMI_JOB_ID, names.QRMI_JOB_UID): (
        "Slurm's job id (in a heterogeneous job, the component's), and the uid of the job's owner"
    ),
    (names.RUST_LOG,): "from srun's verbosity ({levels}), unless the user or the site set one",
    (_SITES_OWN,): f"the site's value, from `--env:{_SITES_OWN}=VALUE` on the plugin's line",
}
_OF_QPU: Final[Mapping[str, str]] = {
    "<VARIABLE>": "each variable of the resource's `environment`, and the user's own: see below for how they merge",
    names.ACQUISITION_TOKEN: "the token that QRMI's acquire call returned",
    names.TIMEOUT_SECONDS: "the job's time limit in seconds; {unlimited} if it has none",
    names.QPU_SLOTS: (
        "how many slots of the QPU the job has, only where it is "
        "[shared by slots](scheduling.md#sharing-a-qpu-by-slots)"
    ),
}
_MARKS: Final[Mapping[str, str]] = {
    names.QRMI_SLURM_QPU: "the step's `--qpu`",
    names.QRMI_SLURM_CAPPED_AT: (
        "with `<name>_` in front: the seconds to which a time that the user set was capped, so that a job that is "
        "submitted from within this one is not held to them"
    ),
    names.QRMI_SLURM_BROKER: "the node that runs the job's [credential broker](broker.md), if it has one",
    names.QRMI_SLURM_CHOICES: "the QPU chosen for each term of `--qpu` that matches several: `TERM=NAME,...`",
    names.QRMI_SLURM_GIVEN: (
        "fingerprints of the site's values, so that a job that is submitted from within this one does not take them "
        "for the user's own"
    ),
    names.QRMI_SLURM_JOB_ID: (
        "the job's id, in a step that was attached with `srun --jobid`, and in a heterogeneous job's components after "
        "the first, which each have their own"
    ),
    names.QRMI_SLURM_RUST_LOG: "the level that qrmi-slurm set, to distinguish it from the user's own",
    names.QRMI_SLURM_STATE_DIR: "where TaskProlog finds the job's exports",
    names.QRMI_SLURM_TASK_PROLOG: "the job for which the plugin has run TaskProlog (`--task-prolog`)",
}
# The stub, which is written in C, sets these in slurmstepd; this module cannot run it.
_STUBS: Final = frozenset(
    {names.QRMI_SLURM_QPU, names.QRMI_SLURM_JOB_ID, names.QRMI_SLURM_STATE_DIR, names.QRMI_SLURM_TASK_PROLOG}
)
# The example's job has no broker, and its user has set nothing.
_NOT_IN_THE_EXAMPLE: Final = frozenset({names.QRMI_SLURM_BROKER, names.QRMI_SLURM_CAPPED_AT})
_SRUN_VERBOSITY: Final = {"--quiet": 2, "": 3, "-v": 4, "-vv": 5}


def page() -> str:
    """Return the page."""
    exported = _exported_by_the_hooks()
    _require_all(exported)
    lines = [
        "# The environment of a task",
        "",
        made_from(_SOURCES),
        "",
        "What qrmi-slurm sets in the environment of each task of a job with `--qpu`, and removes from one without.",
        "",
        "## For the job",
        "",
        *table(("variable", "value"), [(_code(keys), text.format(levels=_levels())) for keys, text in _OF_JOB.items()]),
        "",
        "In a step with its own `srun --qpu`, the first three rows list only that step's QPUs.",
        "",
        "## For each QPU",
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
            "`<name>` is the resource's name, unchanged. Renamed variables are set under both names, so that a program "
            "finds them with any version of QRMI: "
            + ", ".join(f"`{old}X` also as `{new}X`" for old, new in PREFIX_SUCCESSORS.items())
            + "."
        ),
        "",
        *wrapped(_limits()),
        "",
        *_merging(),
        "",
        "## Variables of qrmi-slurm itself",
        "",
        *table(("variable", "value"), [(_code([key]), text) for key, text in _MARKS.items()]),
        "",
        *wrapped(
            "Slurm itself shows, as `SLURM_SPANK_...`, what the job was submitted with: "
            f"`{names.SLURM_SPANK_QRMI_QPU}`, and the user's own variables."
        ),
        "",
        "## The variables of each type",
        "",
        *wrapped(
            '"Required" variables must be set for QRMI to work, by the site or by the user. "Secret" values are masked '
            "in all output. [How the site's and the user's values merge](#how-a-users-values-merge-with-the-sites) "
            'depends on whether a user sets an "address", a "secret" or a "tunable".'
        ),
    ]
    for known in KNOWN.values():
        lines += ["", f"### `{known.name}`", "", *_of_type(known)]
    lines += ["", "Any other type that the installed QRMI knows works too; its variables are passed on unchanged."]
    return "\n".join(lines) + "\n"


def _merging() -> list[str]:
    """Return the section about the site's and the user's values."""
    return [
        "## How a user's values merge with the site's",
        "",
        "For each QPU, one of these rows applies:",
        "",
        *table(
            ("the user sets", "what QRMI is called with and tasks see"),
            [
                ("nothing", "the site's values; QRMI runs as root, without root's power"),
                ("only tunables", "the site's values and these; QRMI runs as root, too"),
                (
                    "a secret, but no address",
                    "the user's values, and those of the site that are no secrets; QRMI runs as the user",
                ),
                ("an address", "only the user's values; QRMI runs as the user"),
                ("anything else, such as a CRN, beside a secret of the site", "nothing: the job does not get the QPU"),
                ("anything else, where the site has no secret", "the site's values and these; QRMI runs as the user"),
            ],
        ),
        "",
        *wrapped(
            "QRMI never runs as the user with a secret of the site. So beside a secret of the user's, a value of the "
            "site's is used only if it is known to be no secret: the lists below have its variable, not marked as "
            'secret; it is not stored elsewhere (`"secrets"`); and it has no `@`, as an address with a password does. '
            "Of a type that is not listed, only addresses are used."
        ),
        "",
        *wrapped(
            "A value that equals the site's does not count as the user's: a job that is submitted from within a QPU "
            "job inherits it. A user's value replaces the site's under all names of the variable."
        ),
        "",
        *wrapped(
            f"The tunables are a session's mode (`{'` or `'.join(resource_types.SESSION_MODES)}`), and how long a "
            "session lives and a task runs, in whole seconds; anything else is refused. Users' times are capped at "
            "what Slurm lets the job run, its time limit and `OverTimeLimit`, plus `--session-margin`, and at "
            f"{environment.SERVICE_MAX_TTL_S} s, the most that IBM's service accepts: in a job with a limit of "
            f"{_TIME_LIMIT_S // 60} minutes, `100000` becomes "
            f"`{environment.longest_s(_TIME_LIMIT_S + int(plugstack.DEFAULT_SESSION_MARGIN_S))}`, with the user's own "
            "key as well. A session for which neither user nor site has set a time lives as long as that cap. The "
            "site's own times are not capped."
        ),
    ]


def _of_type(known: ResourceType) -> list[str]:
    lines = []
    if known.successor:
        lines += [f"Deprecated; the current name is `{known.successor}`.", ""]
    if known.note:
        lines += [*wrapped(known.note), ""]
    rows = []
    for variable in sorted(known.variables):
        kinds = ["required" if variable in known.required else "optional"]
        kinds += ["secret"] if variable in known.secrets else []
        kinds += ["address"] if variable in known.endpoints else []
        kinds += ["tunable"] if variable in known.tunable else []
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
        f"Each value is one line. A user's value can have up to {users_bytes // 1024} KiB, its name up to {name_bytes} "
        f"bytes. In the config, a value and its name can have up to {exports.MAX_VARIABLE_BYTES // 1024} KiB together. "
        f"A `--qpu` list can have up to {selection.MAX_TERMS} terms, {selection.MAX_CHOICES} of them choices, and "
        f"{selection.MAX_SELECTION_BYTES} bytes."
    )


def _stubs_number(name: str) -> int:
    """Return a constant from the stub's source: a number, or a number minus the size of a string."""
    source = (CHECKOUT / "cli_filter" / "variables.h").read_text()
    plain = re.search(rf"^#define {name} (\d+)U$", source, re.MULTILINE)
    if plain:
        return int(plain[1])
    less = re.search(rf'^#define {name} \((\d+)U - sizeof "([^"]*)"\)$', source, re.MULTILINE)
    if not less:
        raise LookupError(f"variables.h does not define {name} in a form that this page can read")
    return int(less[1]) - len(less[2]) - 1


# --- what the hooks export ------------------------------------------------------------------------------------


def _exported_by_the_hooks() -> set[str]:
    """Return the names of all variables that Prolog and TaskProlog export for the example; QRMI is replaced."""
    known = KNOWN[_TYPE]
    site = {variable: "value" for variable in known.required}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "qrmi_config.json"
        config.write_text(json.dumps({"resources": [{"name": _QPU, "type": _TYPE, "environment": site}]}))
        (folder / "slurm.conf").touch()
        (folder / "plugstack.conf").write_text(f"optional spank_qrmi.so {config} --state-dir={folder}/state\n")
        options = SiteOptions(config, folder / "state", env={_SITES_OWN: "value"}, slots_licenses={_QPU: "slots"})
        selected = f"{_QPU[:-1]}*"
        hooks = {
            names.SLURM_CONF: str(folder / "slurm.conf"),
            names.SLURM_JOB_ID: str(_JOB_ID),
            names.SLURM_JOB_UID: str(os.getuid()),
            names.SLURMD_NODENAME: "n1",
            names.SLURM_JOB_START_TIME: "1000",
            names.SLURM_JOB_END_TIME: str(1000 + _TIME_LIMIT_S),
            names.SPANK_QRMI_QPU: selected,
            names.SLURM_JOB_LICENSES: "slots:1",
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
            if not result.is_ready:
                raise LookupError(f"the example's job did not get its QPU: {result}")
            place.write_exports(exports.render(result), job.uid)
        stubs = {names.SLURM_SPANK_QRMI_QPU: selected, names.QRMI_SLURM_QPU: selected}
        outcome = task_prolog.task_prolog(hooks | stubs)
    return {line.partition(" ")[2].partition("=")[0] for line in outcome.lines if line.startswith("export ")}


def _answer(
    calls: Sequence[Call], timeout_s: float, on_answers: Callable[[Sequence[Answer]], None], **options: object
) -> None:
    """Replace QRMI: every call succeeds and returns a token."""
    on_answers([Answer(call, Verdict.DONE, Secret("token"), "", 0.0, ()) for call in calls])


def _require_all(exported: set[str]) -> None:
    """Check that the page describes exactly the variables that are exported.

    Raises:
        LookupError: the two differ.
    """
    of_type = {
        names.of_resource(_QPU, variable)
        for variable in resource_types.with_successors({variable: "" for variable in KNOWN[_TYPE].required})
    }
    of_qpu = {names.of_resource(_QPU, key) for key in _OF_QPU if not key.startswith("<")}
    described = (
        {key for keys in _OF_JOB for key in keys} | of_type | of_qpu | (_MARKS.keys() - _STUBS - _NOT_IN_THE_EXAMPLE)
    )
    if exported != described:
        raise LookupError(f"docs/made/environment.py and the hooks differ in {sorted(exported ^ described)}")
    marks = {value for value in vars(names).values() if isinstance(value, str) and value.startswith(names.SLURM_PREFIX)}
    marks -= {names.SLURM_PREFIX, names.QRMI_SLURM_TIME_LIMIT}  # no task sees the second one
    if marks != _MARKS.keys():
        raise LookupError(f"docs/made/environment.py and names.py differ in {sorted(marks ^ _MARKS.keys())}")
