"""The site options: what the plugin's line in `plugstack.conf` says, read the way Slurm reads it.

The line is world-readable and holds no secret but what an admin puts into `--env:` (a proxy's password), so
values of `--env:` stand in no message. Syntax: spank(7), and `_plugin_stack_parse_line` in
src/common/plugstack.c: words between blanks, `#` begins a comment anywhere, no quoting, `include` takes a glob
pattern relative to the including file.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.names import JOB_PREFIX
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.text import is_one_line, printable

PLUGIN_FILE: Final = "spank_qrmi.so"
DEFAULT_SLURM_CONF: Final = Path("/etc/slurm/slurm.conf")
CONFIGLESS_SLURM_CONF: Final = Path("/run/slurm/conf/slurm.conf")  # where slurmd keeps what slurmctld sent it
DEFAULT_STATE_DIR: Final = Path("/var/spool/qrmi-slurm")

# An acquire is two or three requests; Slurm tells the user "Prolog hung" after MessageTimeout - 2 s, so a
# service that takes longer than this is better reported as down than waited for.
DEFAULT_ACQUIRE_TIMEOUT_S: Final = 30.0
DEFAULT_RELEASE_TIMEOUT_S: Final = 30.0

# Longer waits would hold a node for hours; Slurm's own time values are unsigned 16 bit.
MAX_TIMEOUT_S: Final = 3600.0

# Slurm follows includes without a bound; a loop there would hang every command, here it is an error.
_MAX_INCLUDE_DEPTH: Final = 16

_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIX_HINT: Final = "an admin has to mend the line; see the plugstack line in README"

Requirement = Literal["any", "all"]


class SiteOptions(NamedTuple):
    """What the admin said for the whole site.

    Args:
        config_path: the config with the resources; root reads it, on the compute nodes only.
        state_dir: where records live.
        acquire_timeout_s: the longest that acquiring a job's QPUs may take, in seconds.
        release_timeout_s: the longest that releasing them may take, in seconds.
        require: whether a job may start with some of its QPUs (`any`) or only with `all`.
        env: variables for QRMI's calls and for the tasks; never in a repr.
        source: file and line that said so; empty where nothing did and all is default.
    """

    config_path: Path
    state_dir: Path = DEFAULT_STATE_DIR
    acquire_timeout_s: float = DEFAULT_ACQUIRE_TIMEOUT_S
    release_timeout_s: float = DEFAULT_RELEASE_TIMEOUT_S
    require: Requirement = "any"
    env: Mapping[str, str] = MappingProxyType({})
    source: str = ""

    def __repr__(self) -> str:
        return masked_repr(self, "env")


class PluginLine(NamedTuple):
    """One line that loads the plugin: its arguments, and where it stands."""

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
        PlugstackError: a file cannot be read, or the line holds what we do not know: never a silent default.
    """
    line = plugin_line(plugstack_path(slurm_conf))
    if line is None:
        return SiteOptions(config_path=slurm_conf.parent / "qrmi_config.json")
    return parse_arguments(line, slurm_conf.parent)


def plugin_line(plugstack: Path) -> PluginLine | None:
    """Return the first line that loads the plugin, or None; Slurm refuses to load it a second time."""
    return next(iter(_plugin_lines(plugstack, depth=0)), None)


def plugin_lines(plugstack: Path) -> list[PluginLine]:
    """Return every line that loads the plugin, in Slurm's order; the first counts.

    Raises:
        PlugstackError: a file cannot be read.
    """
    return list(_plugin_lines(plugstack, depth=0))


def empty_includes(plugstack: Path, depth: int = 0) -> list[str]:
    """Return the `include` patterns that match no file, those of included files too; Slurm says nothing of them.

    Raises:
        PlugstackError: a file cannot be read.
    """
    found = []
    for text in _lines(plugstack):
        words = text.partition("#")[0].split()
        if len(words) > 1 and words[0] == "include" and depth <= _MAX_INCLUDE_DEPTH:
            pattern = str(plugstack.parent / words[1])
            included = _matching(pattern)
            found += [inner for path in included for inner in empty_includes(Path(path), depth + 1)] or (
                [] if included else [pattern]
            )
    return found


def plugstack_path(slurm_conf: Path) -> Path:
    """Return where Slurm looks for plugstack.conf: `PlugStackConfig=`, or beside slurm.conf.

    Raises:
        PlugstackError: slurm.conf is there and cannot be read.
    """
    configured = _slurm_conf_value(slurm_conf, "plugstackconfig", depth=0)
    if configured is None:
        return slurm_conf.parent / "plugstack.conf"
    # get_extra_conf_path() in src/common/read_config.c: relative paths stand beside slurm.conf.
    return slurm_conf.parent / configured


def cluster_name(slurm_conf: Path) -> str | None:
    """Return the cluster's name as slurm.conf says; None where it says none.

    Raises:
        PlugstackError: slurm.conf is there and cannot be read.
    """
    return setting(slurm_conf, "ClusterName")


def setting(slurm_conf: Path, name: str) -> str | None:
    """Return a setting's value as slurm.conf says, the last one where there are several; None where it says none.

    Raises:
        PlugstackError: slurm.conf is there and cannot be read.
    """
    return _slurm_conf_value(slurm_conf, name.lower(), depth=0)


def parse_arguments(line: PluginLine, default_dir: Path) -> SiteOptions:
    """Return the options that a plugin line holds.

    Args:
        line: the line's arguments, and where they stand for messages.
        default_dir: the directory of `qrmi_config.json` where the line names none.

    Raises:
        PlugstackError: an option is unknown, malformed, or stands twice.
    """
    paths = [argument for argument in line.arguments if not argument.startswith("-")]
    if len(paths) > 1:
        # Not the words themselves: a blank in --env:NAME=VALUE makes the rest of a value one of them.
        raise PlugstackError(
            f"{line.source}: {len(paths)} words that are no option; only the config's path is", _FIX_HINT
        )
    env: dict[str, str] = {}
    values: dict[str, str] = {}
    for argument in line.arguments:
        if argument.startswith("--env:"):
            name, equals, value = argument.removeprefix("--env:").partition("=")
            if not equals or not _VARIABLE_NAME.fullmatch(name) or not is_one_line(value):
                raise PlugstackError(f"{line.source}: --env:{printable(name)} is not --env:NAME=VALUE", _FIX_HINT)
            if name in env:
                raise PlugstackError(f"{line.source}: --env:{name} stands twice", _FIX_HINT)
            if name.startswith(JOB_PREFIX) or f"_{JOB_PREFIX}" in name:
                raise PlugstackError(f"{line.source}: --env:{name} is for the hooks alone to set", _FIX_HINT)
            env[name] = value
        elif argument.startswith("-"):
            name, equals, value = argument.partition("=")
            if name not in _VALUE_OPTIONS:
                raise PlugstackError(
                    f"{line.source}: unknown option {printable(name)}; known are "
                    f"{', '.join(_VALUE_OPTIONS)}, --env:NAME",
                    _FIX_HINT,
                )
            if not equals or not value:
                raise PlugstackError(f"{line.source}: {name} has no value", _FIX_HINT)
            if name in values:
                raise PlugstackError(f"{line.source}: {name} stands twice", _FIX_HINT)
            values[name] = value
    config_path = Path(paths[0]) if paths else default_dir / "qrmi_config.json"
    state_dir = Path(values.get(_STATE_DIR, DEFAULT_STATE_DIR))
    for what, path in (("the config's path", config_path), (_STATE_DIR, state_dir)):
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
        env=env,
        source=line.source,
    )


_STATE_DIR: Final = "--state-dir"
_ACQUIRE_TIMEOUT: Final = "--acquire-timeout"
_RELEASE_TIMEOUT: Final = "--release-timeout"
_REQUIRE: Final = "--require"
_VALUE_OPTIONS: Final = (_STATE_DIR, _ACQUIRE_TIMEOUT, _RELEASE_TIMEOUT, _REQUIRE)


def _seconds(line: PluginLine, values: Mapping[str, str], option: str, default_s: float) -> float:
    if option not in values:
        return default_s
    text = values[option]
    seconds = float(text) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) else 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise PlugstackError(
            f"{line.source}: {option}={printable(text)} is not a number of seconds in (0, {MAX_TIMEOUT_S:.0f}]",
            _FIX_HINT,
        )
    return seconds


def _requirement(line: PluginLine, text: str) -> Requirement:
    if text == "any":
        return "any"
    if text == "all":
        return "all"
    raise PlugstackError(f"{line.source}: --require={printable(text)} is neither any nor all", _FIX_HINT)


def _plugin_lines(plugstack: Path, depth: int) -> Iterator[PluginLine]:
    if depth > _MAX_INCLUDE_DEPTH:
        raise PlugstackError(f"{plugstack}: include within include, {depth} deep", _FIX_HINT)
    for number, text in enumerate(_lines(plugstack), start=1):
        words = [word for word in re.split("[ \\t]", text.partition("#")[0]) if word]
        if len(words) < 2:
            continue
        if words[0] == "include":
            pattern = str(plugstack.parent / words[1])
            for included in _matching(pattern):
                yield from _plugin_lines(Path(included), depth + 1)
        elif words[0] in ("required", "optional") and Path(words[1]).name == PLUGIN_FILE:
            yield PluginLine(words[1], tuple(words[2:]), f"{plugstack}:{number}", words[0] == "required")


def _matching(pattern: str) -> list[str]:
    """Return the files that an `include` names, in Slurm's order."""
    import glob  # only where there is an include

    return sorted(glob.glob(pattern))


def _slurm_conf_value(slurm_conf: Path, key: str, depth: int) -> str | None:
    """Return the last value of a one-word key, `Include` followed; keys are case-insensitive in slurm.conf."""
    if depth > _MAX_INCLUDE_DEPTH:
        raise PlugstackError(f"{slurm_conf}: Include within Include, {depth} deep", _FIX_HINT)
    found = None
    for content in _slurm_conf_lines(slurm_conf):
        lowered = content[: len(key) + 8].lower()
        if lowered.startswith("include "):
            included = slurm_conf.parent / content.split(None, 1)[1].strip()
            nested = _slurm_conf_value(included, key, depth + 1)
            found = nested if nested is not None else found
        elif lowered.startswith(key):
            name, equals, value = content.partition("=")
            if equals and name.strip().lower() == key:
                found = value.strip().strip('"')
    return found


def _slurm_conf_lines(path: Path) -> Iterator[str]:
    """Return slurm.conf's lines without comments; one that ends with a backslash goes on (parse_config.c)."""
    begun = ""
    for text in _lines(path):
        content = begun + text.partition("#")[0].rstrip()
        begun = content[:-1] if content.endswith("\\") else ""
        if not begun:
            yield content.strip()
    if begun:
        yield begun.strip()


def _lines(path: Path) -> list[str]:
    """Return a file's lines; a missing file is an empty one, as for Slurm."""
    try:
        # Not splitlines(), for which a form feed ends a line as well.
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PlugstackError(f"cannot read {path}: {error.strerror}", _FIX_HINT) from error
