"""The site options: the arguments on the plugin's line in `plugstack.conf`, read the way Slurm reads them.

The line is world-readable. The only secret in it may be a value of `--env:` (a proxy's password), so these values are
never in a message. Syntax: spank(7), and `_plugin_stack_parse_line` in src/common/plugstack.c: words are separated by
spaces or tabs, `#` begins a comment anywhere, there is no quoting, and `include` takes a glob pattern relative to the
including file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.names import JOB_PREFIX
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.slurm import conf_file
from qrmi_slurm.text import is_one_line, printable

PLUGIN_FILE: Final = "spank_qrmi.so"
DEFAULT_STATE_DIR: Final = Path("/var/spool/qrmi-slurm")

# Acquiring takes two or three requests. Slurm tells the user "Prolog hung" after MessageTimeout - 2 s, so it is better
# to report a slower service as down than to wait for it.
DEFAULT_ACQUIRE_TIMEOUT_S: Final = 30.0
DEFAULT_RELEASE_TIMEOUT_S: Final = 30.0

# Longer waits would block a node for hours; Slurm's own time values are unsigned 16 bit.
MAX_TIMEOUT_S: Final = 3600.0

# How long a job waits for a QPU that is not there, and the longest that a site may set: a year.
DEFAULT_REQUEUE_LIMIT_H: Final = 24.0
MAX_REQUEUE_LIMIT_H: Final = 8784.0

# The name of a license, as the hooks accept it; a remote one is `name@server`.
LICENSE: Final = r"[A-Za-z0-9_.@-]+"

# How much longer than its job a session may live: KillWait (30 s by default) and what slurmctld takes to notice.
DEFAULT_SESSION_MARGIN_S: Final = 60.0

_FIX_HINT: Final = "an admin has to fix the plugin's line in plugstack.conf"

Requirement = Literal["any", "all"]
Unavailable = Literal["requeue", "fail"]


class SiteOptions(NamedTuple):
    """The options that the admin set for the whole site.

    Args:
        config_path: the config with the resources; only root reads it, on the compute nodes.
        state_dir: the state directory, which holds the records.
        acquire_timeout_s: how long acquiring a job's QPUs may take, in seconds.
        release_timeout_s: how long releasing them may take, in seconds.
        require: whether a job may start with some of its QPUs (`any`) or only with `all`.
        on_unavailable: what becomes of a batch job whose QPUs are not there for a time: it goes back into the queue
            (`requeue`), or fails.
        requeue_limit_h: how long after its first such start it fails all the same, in hours.
        env: variables for QRMI's calls and for the tasks; never shown in a repr.
        slots_licenses: by the resource's name, the license whose number in a job is how many slots of it the job has.
        session_margin_s: how much longer than its job a session may live, in seconds.
        task_prolog: the TaskProlog that the plugin itself runs, for steps of QPU jobs alone; None if slurm.conf is to
            name one.
        source: file and number of the line; empty if there is no line and all options have their defaults.
        slurm_conf: Slurm's configuration file, by which the line was found.
    """

    config_path: Path
    state_dir: Path = DEFAULT_STATE_DIR
    acquire_timeout_s: float = DEFAULT_ACQUIRE_TIMEOUT_S
    release_timeout_s: float = DEFAULT_RELEASE_TIMEOUT_S
    require: Requirement = "any"
    on_unavailable: Unavailable = "requeue"
    requeue_limit_h: float = DEFAULT_REQUEUE_LIMIT_H
    env: Mapping[str, str] = MappingProxyType({})
    task_prolog: Path | None = None
    source: str = ""
    slurm_conf: Path = conf_file.DEFAULT_SLURM_CONF
    slots_licenses: Mapping[str, str] = MappingProxyType({})
    session_margin_s: float = DEFAULT_SESSION_MARGIN_S

    def __repr__(self) -> str:
        return masked_repr(self, "env")


class PluginLine(NamedTuple):
    """A line that loads the plugin: its arguments, and its file and number."""

    path: str
    arguments: tuple[str, ...]
    source: str
    is_required: bool = False

    def __repr__(self) -> str:
        return masked_repr(self, "arguments")


def read(slurm_conf: Path) -> SiteOptions:
    """Return the site's options from the `plugstack.conf` that belongs to `slurm_conf`.

    Args:
        slurm_conf: Slurm's configuration file, usually from `$SLURM_CONF`.

    Raises:
        PlugstackError: a file cannot be read, or the line has an unknown or invalid option.
    """
    line = plugin_line(plugstack_path(slurm_conf))
    if line is None:
        found = SiteOptions(config_path=conf_file.local_folder(slurm_conf) / "qrmi_config.json")
    else:
        found = parse_arguments(line, conf_file.local_folder(slurm_conf))
    return found._replace(slurm_conf=slurm_conf)


def plugin_line(plugstack: Path) -> PluginLine | None:
    """Return the first line that loads the plugin, or None; Slurm does not load it a second time."""
    return next(iter(_plugin_lines(plugstack, depth=0)), None)


def plugin_lines(plugstack: Path) -> list[PluginLine]:
    """Return every line that loads the plugin, in Slurm's order; the first counts.

    Raises:
        PlugstackError: a file cannot be read.
    """
    return list(_plugin_lines(plugstack, depth=0))


def empty_includes(plugstack: Path, depth: int = 0) -> list[str]:
    """Return the `include` patterns that match no file, also in included files; Slurm does not report them.

    Raises:
        PlugstackError: a file cannot be read.
    """
    found = []
    for text in conf_file.lines(plugstack):
        words = text.partition("#")[0].split()
        if len(words) > 1 and words[0] == "include" and depth <= conf_file.MAX_INCLUDE_DEPTH:
            pattern = str(plugstack.parent / words[1])
            included = _matching(pattern)
            found += [inner for path in included for inner in empty_includes(Path(path), depth + 1)] or (
                [] if included else [pattern]
            )
    return found


def plugstack_path(slurm_conf: Path) -> Path:
    """Return where Slurm looks for plugstack.conf: `PlugStackConfig=`, or beside slurm.conf.

    Raises:
        PlugstackError: slurm.conf exists and cannot be read.
    """
    configured = conf_file.setting(slurm_conf, "PlugStackConfig")
    if configured is None:
        return slurm_conf.parent / "plugstack.conf"
    # get_extra_conf_path() in src/common/read_config.c: paths are relative to slurm.conf.
    return slurm_conf.parent / configured


def parse_arguments(line: PluginLine, default_dir: Path) -> SiteOptions:
    """Return the options on a plugin line.

    Args:
        line: the line; its source is used in messages.
        default_dir: the directory of `qrmi_config.json` if the line does not name it.

    Raises:
        PlugstackError: an option is unknown, invalid, or given twice.
    """
    paths = [argument for argument in line.arguments if not argument.startswith("-")]
    if len(paths) > 1:
        # Do not show the words: after a blank in --env:NAME=VALUE, they are the rest of the value.
        raise PlugstackError(
            f"{line.source}: {len(paths)} words are not options; only the config's path may be one", _FIX_HINT
        )
    env: dict[str, str] = {}
    values: dict[str, str] = {}
    slots_licenses: dict[str, str] = {}
    for argument in line.arguments:
        if argument.startswith("--env:"):
            name, equals, value = argument.removeprefix("--env:").partition("=")
            if not equals or not (name.isascii() and name.isidentifier()) or not is_one_line(value):
                raise PlugstackError(f"{line.source}: --env:{printable(name)} is not --env:NAME=VALUE", _FIX_HINT)
            if name in env:
                raise PlugstackError(f"{line.source}: --env:{name} is given twice", _FIX_HINT)
            if name.startswith(JOB_PREFIX) or f"_{JOB_PREFIX}" in name:
                raise PlugstackError(f"{line.source}: only the hooks may set {name}, not --env:", _FIX_HINT)
            env[name] = value
        elif argument.startswith(f"{SLOTS_LICENSE}:"):
            resource, license = _slots_license(line, argument)
            if resource in slots_licenses:
                raise PlugstackError(f"{line.source}: {SLOTS_LICENSE}:{printable(resource)} is given twice", _FIX_HINT)
            slots_licenses[resource] = license
        elif argument.startswith("-"):
            name, equals, value = argument.partition("=")
            if name not in _VALUE_OPTIONS:
                raise PlugstackError(
                    f"{line.source}: unknown option {printable(name)}; the options are "
                    f"{', '.join(_VALUE_OPTIONS)}, --env:NAME, {SLOTS_LICENSE}:RESOURCE",
                    _FIX_HINT,
                )
            if not equals or not value:
                raise PlugstackError(f"{line.source}: {name} needs a value", _FIX_HINT)
            if name in values:
                raise PlugstackError(f"{line.source}: {name} is given twice", _FIX_HINT)
            values[name] = value
    config_path = Path(paths[0]) if paths else default_dir / "qrmi_config.json"
    state_dir = Path(values.get(_STATE_DIR, DEFAULT_STATE_DIR))
    task_prolog = Path(values[_TASK_PROLOG]) if _TASK_PROLOG in values else None
    for what, path in (("the config's path", config_path), (_STATE_DIR, state_dir), (_TASK_PROLOG, task_prolog)):
        if path is None:
            continue
        if not path.is_absolute() or ".." in path.parts:
            raise PlugstackError(
                f"{line.source}: {what} {printable(str(path))} is not an absolute path without '..'", _FIX_HINT
            )
    return SiteOptions(
        config_path=config_path,
        state_dir=state_dir,
        acquire_timeout_s=_seconds(line, values, _ACQUIRE_TIMEOUT, DEFAULT_ACQUIRE_TIMEOUT_S),
        release_timeout_s=_seconds(line, values, _RELEASE_TIMEOUT, DEFAULT_RELEASE_TIMEOUT_S),
        require=_requirement(line, values.get(_REQUIRE, "any")),
        on_unavailable=_unavailable(line, values.get(_ON_UNAVAILABLE, "requeue")),
        requeue_limit_h=_hours(line, values),
        env=env,
        task_prolog=task_prolog,
        source=line.source,
        slots_licenses=slots_licenses,
        session_margin_s=_seconds(line, values, _SESSION_MARGIN, DEFAULT_SESSION_MARGIN_S, may_be_zero=True),
    )


_STATE_DIR: Final = "--state-dir"
_ACQUIRE_TIMEOUT: Final = "--acquire-timeout"
_RELEASE_TIMEOUT: Final = "--release-timeout"
_REQUIRE: Final = "--require"
_ON_UNAVAILABLE: Final = "--on-unavailable"
_REQUEUE_LIMIT: Final = "--requeue-limit"
SLOTS_LICENSE: Final = "--qpu-slots-license"
_SESSION_MARGIN: Final = "--session-margin"
_TASK_PROLOG: Final = "--task-prolog"
_VALUE_OPTIONS: Final = (
    *(_STATE_DIR, _ACQUIRE_TIMEOUT, _RELEASE_TIMEOUT, _REQUIRE, _ON_UNAVAILABLE, _REQUEUE_LIMIT),
    *(_SESSION_MARGIN, _TASK_PROLOG),
)

# Up to five digits before the point and three after it.
_NUMBER: Final = r"[0-9]{1,5}(\.[0-9]{1,3})?"


def _slots_license(line: PluginLine, argument: str) -> tuple[str, str]:
    """Return the resource and the license of `--qpu-slots-license:RESOURCE=LICENSE`."""
    resource, equals, license = argument.removeprefix(f"{SLOTS_LICENSE}:").partition("=")
    if not equals or not resource or not re.fullmatch(LICENSE, license):
        what = "a license's name is of letters, digits and _ . @ -"
        raise PlugstackError(
            f"{line.source}: {printable(argument)} is not {SLOTS_LICENSE}:RESOURCE=LICENSE; {what}", _FIX_HINT
        )
    return resource, license


def _seconds(
    line: PluginLine, values: Mapping[str, str], option: str, default_s: float, *, may_be_zero: bool = False
) -> float:
    if option not in values:
        return default_s
    text = values[option]
    seconds = float(text) if re.fullmatch(_NUMBER, text) else -1.0
    if not 0 <= seconds <= MAX_TIMEOUT_S or (seconds == 0 and not may_be_zero):
        least = "from 0" if may_be_zero else "above 0,"
        raise PlugstackError(
            f"{line.source}: {option}={printable(text)} is not a number of seconds {least} up to {MAX_TIMEOUT_S:.0f}",
            _FIX_HINT,
        )
    return seconds


def _requirement(line: PluginLine, text: str) -> Requirement:
    if text == "any":
        return "any"
    if text == "all":
        return "all"
    raise PlugstackError(f"{line.source}: --require={printable(text)} is neither any nor all", _FIX_HINT)


def _unavailable(line: PluginLine, text: str) -> Unavailable:
    if text == "requeue":
        return "requeue"
    if text == "fail":
        return "fail"
    raise PlugstackError(f"{line.source}: {_ON_UNAVAILABLE}={printable(text)} is neither requeue nor fail", _FIX_HINT)


def _hours(line: PluginLine, values: Mapping[str, str]) -> float:
    text = values.get(_REQUEUE_LIMIT)
    if text is None:
        return DEFAULT_REQUEUE_LIMIT_H
    hours = float(text) if re.fullmatch(_NUMBER, text) else 0.0
    if not 0 < hours <= MAX_REQUEUE_LIMIT_H:
        raise PlugstackError(
            f"{line.source}: {_REQUEUE_LIMIT}={printable(text)} is not a number of hours above 0, up to "
            f"{MAX_REQUEUE_LIMIT_H:.0f}; jobs that are not to wait at all need {_ON_UNAVAILABLE}=fail",
            _FIX_HINT,
        )
    return hours


def _plugin_lines(plugstack: Path, depth: int) -> Iterator[PluginLine]:
    if depth > conf_file.MAX_INCLUDE_DEPTH:
        depth_text = f"include is nested more than {conf_file.MAX_INCLUDE_DEPTH} deep"
        raise PlugstackError(f"{plugstack}: {depth_text}", conf_file.LOOP_HINT)
    for number, text in enumerate(conf_file.lines(plugstack), start=1):
        words = [word for word in text.partition("#")[0].replace("\t", " ").split(" ") if word]
        if len(words) < 2:
            continue
        if words[0] == "include":
            pattern = str(plugstack.parent / words[1])
            for included in _matching(pattern):
                yield from _plugin_lines(Path(included), depth + 1)
        elif words[0] in ("required", "optional") and Path(words[1]).name == PLUGIN_FILE:
            yield PluginLine(words[1], tuple(words[2:]), f"{plugstack}:{number}", words[0] == "required")


def _matching(pattern: str) -> list[str]:
    """Return the files that match the pattern of an `include`, in Slurm's order."""
    import glob  # only needed for an include

    return sorted(glob.glob(pattern))
