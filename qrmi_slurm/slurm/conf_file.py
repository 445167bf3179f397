"""slurm.conf itself, read the way Slurm reads it.

Syntax: slurm.conf(5) and src/common/parse_config.c. TaskProlog and Prolog load this module in every QPU job, so it
imports next to nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.names import UNLIMITED_TIMEOUT_S

DEFAULT_SLURM_CONF: Final = Path("/etc/slurm/slurm.conf")

# Where slurmd keeps what slurmctld sent it (slurmd.c, _establish_configuration() and _handle_slash_run()): in its spool
# directory, with a link in /run. Where slurmd's unit has RuntimeDirectory=slurm, the link goes when slurmd stops.
CONFIGLESS_SLURM_CONF: Final = Path("/run/slurm/conf/slurm.conf")
SPOOLED_SLURM_CONF: Final = Path("/var/spool/slurmd/conf-cache/slurm.conf")  # with the default SlurmdSpoolDir

# Slurm follows includes without a limit; a loop would hang every command, so here it is an error.
MAX_INCLUDE_DEPTH: Final = 16
LOOP_HINT: Final = "look for a file that includes itself"


def on_this_node() -> Path | None:
    """Return the slurm.conf of this node, or slurmd's copy of slurmctld's; None if it has neither.

    An empty file is not one: it only satisfies the ConditionPathExists= of Debian 12's slurmd.service.
    """
    candidates = (DEFAULT_SLURM_CONF, CONFIGLESS_SLURM_CONF, SPOOLED_SLURM_CONF)
    return next((path for path in candidates if _size_bytes(path)), None)


def is_copy(slurm_conf: Path) -> bool:
    """Tell whether a slurm.conf is slurmd's copy of slurmctld's, which slurmd overwrites."""
    return slurm_conf == CONFIGLESS_SLURM_CONF or slurm_conf.parent.name == SPOOLED_SLURM_CONF.parent.name


def local_folder(slurm_conf: Path) -> Path:
    """Return the folder for what belongs beside slurm.conf but is not sent by slurmctld, such as the config."""
    return DEFAULT_SLURM_CONF.parent if is_copy(slurm_conf) else slurm_conf.parent


def setting(slurm_conf: Path, name: str) -> str | None:
    """Return the value of a setting in slurm.conf, the last one if it is set several times; None if it is not set.

    Args:
        slurm_conf: Slurm's configuration file; a missing file counts as empty.
        name: the setting, in upper or lower case.

    Raises:
        PlugstackError: the file exists and cannot be read.
    """
    return _last_value(slurm_conf, name.lower(), depth=0)


def cluster_name(slurm_conf: Path) -> str | None:
    """Return the cluster's name in slurm.conf; None if it is not set.

    Raises:
        PlugstackError: the file exists and cannot be read.
    """
    return setting(slurm_conf, "ClusterName")


def over_time_limit_s(slurm_conf: Path, partition: str | None) -> int:
    """Return how much longer than its time limit Slurm lets a job run, in seconds; 2147483647 without an end.

    slurmctld ends a job when its time limit and `OverTimeLimit` have passed; the partition's own value goes first
    (src/slurmctld/job_mgr.c, job_time_limit()). A change by `scontrol update` is not in the file.

    Args:
        slurm_conf: Slurm's configuration file; a missing file counts as empty.
        partition: the job's; None if unknown.

    Raises:
        PlugstackError: the file exists and cannot be read.
    """
    if not _may_have(slurm_conf, "overtimelimit"):  # most sites
        return 0
    of_site = of_defaults = of_partition = ""
    for content in _flat(slurm_conf, depth=0):
        key = content[:13].lower()
        if key == "overtimelimit":
            of_site = _words(content).get("overtimelimit", of_site)
        elif key == "partitionname":
            words = _words(content)
            name, value = words.get("partitionname", ""), words.get("overtimelimit", "")
            if name.upper() == "DEFAULT":  # for the lines after it
                of_defaults = value or of_defaults
            elif name == partition:
                of_partition = value or of_defaults
    minutes = (of_partition or of_site).upper()
    if minutes in ("UNLIMITED", "INFINITE"):
        return UNLIMITED_TIMEOUT_S
    # Slurm's own value is unsigned 16 bit; slurmctld does not start with anything else.
    return int(minutes) * 60 if minutes.isascii() and minutes.isdecimal() and len(minutes) <= 5 else 0


def _words(content: str) -> dict[str, str]:
    """Return the `Key=value` pairs of a line, with their keys in lower case."""
    import re  # only needed for lines about partitions

    pairs = re.findall(r'([A-Za-z]\w*)\s*=\s*("[^"]*"|\S+)', content)
    return {key.lower(): value.strip('"') for key, value in pairs}


def lines(path: Path) -> list[str]:
    """Return the lines of slurm.conf, plugstack.conf or a file they include; a missing file counts as empty.

    Raises:
        PlugstackError: the file exists and cannot be read.
    """
    try:
        # Not splitlines(): it also splits at form feeds, Slurm does not.
        return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PlugstackError(f"cannot read {path}: {error.strerror}", "all users must be able to read it") from error


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_value(slurm_conf: Path, key: str, depth: int) -> str | None:
    """Return the last value of a one-word key, following `Include`; keys are case-insensitive in slurm.conf."""
    found = None
    if not _may_have(slurm_conf, key):
        return None
    for content in _flat(slurm_conf, depth):
        if content[: len(key)].lower() == key:
            name, equals, value = content.partition("=")
            if equals and name.strip().lower() == key:
                found = value.strip().strip('"')
    return found


def _may_have(path: Path, key: str) -> bool:
    """Tell whether a setting may be in a file: of thousands of lines about nodes, it takes 15 ms to look at each."""
    try:
        content = path.read_bytes().lower()
    except OSError:
        return True
    return any(word in content for word in (key.encode(), b"include", b"\\\n"))


def _flat(slurm_conf: Path, depth: int) -> Iterator[str]:
    """Return slurm.conf's lines as `_joined_lines`, with those of a file that is included in place of its `Include`."""
    if depth > MAX_INCLUDE_DEPTH:
        raise PlugstackError(f"{slurm_conf}: Include is nested more than {MAX_INCLUDE_DEPTH} deep", LOOP_HINT)
    for content in _joined_lines(slurm_conf):
        if content[:8].lower() == "include ":
            yield from _flat(slurm_conf.parent / content.split(None, 1)[1].strip(), depth + 1)
        else:
            yield content


def _joined_lines(path: Path) -> Iterator[str]:
    """Return slurm.conf's lines without comments; a backslash at the end joins a line to the next."""
    begun = ""
    for text in lines(path):
        content = begun + text.partition("#")[0].rstrip()
        begun = content[:-1] if content.endswith("\\") else ""
        if not begun:
            yield content.strip()
    if begun:
        yield begun.strip()
