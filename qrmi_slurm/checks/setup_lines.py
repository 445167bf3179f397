"""The lines that an installation needs elsewhere: in slurm.conf, in plugstack.conf, and for systemd.

They are printed, never written: the files are the admin's.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.slurm import plugstack, prolog_flags
from qrmi_slurm.slurm.plugstack import DEFAULT_SLURM_CONF, DEFAULT_STATE_DIR, SiteOptions
from qrmi_slurm.text import printable

# What slurm.conf, plugstack.conf and systemd all take as one word: neither knows a way to quote a blank in a path.
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9_./+@:,=-]*")

WRAPPER_PATH: Final = Path("/etc/slurm/task_prolog")

_WRAPPER: Final = """\
#!/bin/sh
# TaskProlog= of slurm.conf: the site's own, then qrmi-slurm's. slurmstepd reads the lines of both.
{existing} || exit
echo
exec {ours}
"""

# As in the tree, where they name the installation that README makes.
_UNITS: Final = {
    "qrmi-slurm-recover.service": "",
    "qrmi-slurm-recover.timer": "On every compute node: systemctl enable --now qrmi-slurm-recover.timer",
    "qrmi-slurm-sensor.service": "On one node that can read the config, best slurmctld's; for licenses.",
    "qrmi-slurm-sensor.timer": "There: systemctl enable --now qrmi-slurm-sensor.timer",
    "qrmi-slurm-qpus.service": "On one node that can read the config, where users see the list and no sensor runs.",
    "qrmi-slurm-qpus.timer": "There: systemctl enable --now qrmi-slurm-qpus.timer",
}
_UNITS_COMMAND: Final = "/opt/qrmi-slurm/bin/qrmi-slurm"


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs into one file.

    Args:
        path: the file.
        text: its lines.
        is_whole: whether the file is these lines; otherwise they are added to what is there.
        mode: the file's mode, where it is whole and matters.
        note: what to know of it; comment lines.
        purpose: what the lines are for, where they are not for everybody.
    """

    path: Path
    text: str
    is_whole: bool
    mode: int | None = None
    note: tuple[str, ...] = ()
    purpose: str = ""


def parts(
    installation: Installation, options: SiteOptions, slurm_conf: Path, existing_task_prolog: Path | None = None
) -> list[Part]:
    """Return what an installation needs elsewhere.

    Args:
        installation: whose paths to name.
        options: the site's as they are now, for the plugin's line.
        slurm_conf: Slurm's configuration file.
        existing_task_prolog: the site's own TaskProlog, which is to run as well.

    Raises:
        QrmiSlurmError: a path cannot stand in these files, or slurm.conf is there and cannot be read.
    """
    paths = [installation.prefix, options.config_path, options.state_dir, slurm_conf.parent]
    for path in (*paths, *([existing_task_prolog] if existing_task_prolog else [])):
        if not _PLAIN_PATH.fullmatch(str(path)):
            hint = "Slurm's files know no quoting: move it to a path of letters, digits and _ . + @ : , = -"
            raise QrmiSlurmError(f"{path} cannot stand in slurm.conf", hint)
    return [*_slurm(installation, options, slurm_conf, existing_task_prolog), *_systemd(installation, slurm_conf)]


def _slurm(installation: Installation, options: SiteOptions, slurm_conf: Path, existing: Path | None) -> list[Part]:
    task_prolog = installation.task_prolog
    found = []
    if existing is not None:
        task_prolog = slurm_conf.parent / WRAPPER_PATH.name
        if existing == task_prolog:
            task_prolog = task_prolog.with_name("task_prolog_qrmi")
        wrapper = _WRAPPER.format(existing=shlex.quote(str(existing)), ours=shlex.quote(str(installation.task_prolog)))
        above = "Runs the site's own TaskProlog first. Users run it: mode 0755, on every compute node."
        found.append(Part(task_prolog, wrapper, is_whole=True, mode=0o755, note=(above,)))
    present = (plugstack.setting(slurm_conf, "PrologFlags") or "").split(",")
    flags = prolog_flags.wanted_flags([word.strip() for word in present if word.strip()])
    lines = [
        f"Prolog={installation.prolog}",
        f"TaskProlog={task_prolog}",
        f"Epilog={installation.epilog}",
        f"PrologFlags={','.join(flags)}",
    ]
    start_timeout = plugstack.setting(slurm_conf, "BatchStartTimeout") or ""
    wanted_s = prolog_flags.start_timeout_s(options.acquire_timeout_s)
    if prolog_flags.step_waits(flags) and not (start_timeout.isdecimal() and int(start_timeout) >= wanted_s):
        lines.append(f"BatchStartTimeout={wanted_s}")
    note = (
        "With a Prolog or Epilog of your own: name a folder, Prolog=/etc/slurm/prolog.d/*, and link ours into it.",
        "PrologFlags takes the place of what slurm.conf has; NoHold may stand in it as well: docs/admin.md, step 5.",
    )
    plugin = installation.plugin()
    words = ["optional", str(plugin or installation.prefix / "lib" / "spank_qrmi.so"), str(options.config_path)]
    if options.state_dir != DEFAULT_STATE_DIR:
        words.append(f"--state-dir={options.state_dir}")
    plugin_note: tuple[str, ...] = ("Login nodes need no more than the first two words.",)
    if plugin is None:
        plugin_note = (
            "It is not built yet, in a checkout: "
            f"make -C cli_filter install SLURM_PLUGIN_DIR={installation.prefix / 'lib'}",
            *plugin_note,
        )
    return [
        *found,
        Part(slurm_conf, "\n".join(lines) + "\n", is_whole=False, note=note),
        Part(slurm_conf.parent / "plugstack.conf", " ".join(words) + "\n", is_whole=False, note=plugin_note),
    ]


def _systemd(installation: Installation, slurm_conf: Path) -> list[Part]:
    found = []
    for name, note in _UNITS.items():
        text = _unit_text(name).replace(_UNITS_COMMAND, str(installation.command))
        if slurm_conf != DEFAULT_SLURM_CONF:
            text = text.replace("\nExecStart=", f"\nEnvironment=SLURM_CONF={slurm_conf}\nExecStart=")
        found.append(Part(Path("/etc/systemd/system") / name, text, is_whole=True, note=(note,) if note else ()))
    return found


def license_part(installation: Installation, slurm_conf: Path, wanted: Mapping[str, int] | None, fault: str) -> Part:
    """Return the lines by which jobs wait for QPUs in the queue; each takes the place of what slurm.conf has.

    Args:
        installation: whose paths to name.
        slurm_conf: Slurm's configuration file.
        wanted: the count of each license of the config; None where it cannot be read.
        fault: why it cannot.

    Raises:
        PlugstackError: slurm.conf is there and cannot be read.
    """

    def before(name: str) -> str:
        return plugstack.setting(slurm_conf, name) or ""

    lua_dir = installation.lua_dir()
    etc, lua = slurm_conf.parent, lua_dir or installation.prefix / "lib" / "lua"
    note = [
        "Optional. With these lines a job waits in the queue until its QPUs are free; without them it starts whether",
        "they are or not, and all else is the same. They take the place of those that slurm.conf has. Do this before,",
        "since slurmctld does not start without the first file, nor any sbatch, srun and salloc without the second:",
        f"  on the controller:  install -m 0644 {lua}/job_submit.lua {etc}/ && {installation.command} catalogue",
        f"  on every node:      install -m 0644 {lua}/cli_filter.lua {etc}/",
        "With such files of your own, docs/scheduling.md has the lines to add to them; they begin with",
        f'  package.path = "{lua}/?.lua;" .. package.path',
    ]
    if lua_dir is None:
        make = f"make -C cli_filter install-lua SLURM_PLUGIN_DIR={installation.prefix / 'lib'}"
        note.insert(0, f"These files are not installed yet, in a checkout: {make}")
    lines = [f"{name}={_with_words(before(name), ['lua'])}" for name in ("JobSubmitPlugins", "CliFilterPlugins")]
    if wanted is None:
        lines.insert(0, f"# Licenses= needs the config: {printable(fault)}")
    elif wanted:
        lines.insert(0, f"Licenses={with_counts(before('Licenses'), wanted)}")
        tracked = _with_words(before("AccountingStorageTRES"), [f"license/{name}" for name in wanted])
        has_database = before("AccountingStorageType").lower().endswith("slurmdbd")
        lines.append(f"{'' if has_database else '# with slurmdbd: '}AccountingStorageTRES={tracked}")
    text = "\n".join(lines) + "\n"
    return Part(slurm_conf, text, is_whole=False, note=tuple(note), purpose="to let jobs wait for QPUs (optional)")


def with_counts(before: str, wanted: Mapping[str, int]) -> str:
    """Return `Licenses=` of slurm.conf with other counts for some of them.

    Args:
        before: what it says: names, each with a count behind `:` (or `=`), between commas.
        wanted: the counts that are to stand there.
    """
    kept = [word.strip() for word in re.split(r"[,;]", before) if re.split(r"[:=]", word)[0].strip() not in wanted]
    return ",".join([*filter(None, kept), *(f"{name}:{count}" for name, count in wanted.items())])


def _with_words(before: str, wanted: Sequence[str]) -> str:
    words = [word.strip() for word in before.split(",") if word.strip()]
    return ",".join([*words, *(word for word in wanted if word not in words)])


def _unit_text(name: str) -> str:
    """Return a unit: from the installed package, or from the tree that the package stands in."""
    package = Path(str(resources.files("qrmi_slurm")))
    for folder in (package / "systemd", package.parent / "systemd"):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise QrmiSlurmError(f"{name} is missing from the installation", "install qrmi-slurm again")


def render(found: list[Part]) -> str:
    """Return all parts as text: each headed by its file, in comment lines."""
    blocks = []
    for part in found:
        what = f"{part.path}" if part.is_whole else f"{part.path}: add"
        what += f", {part.purpose}" if part.purpose else ""
        mode = f" (mode {part.mode:04o})" if part.mode is not None else ""
        head = [f"### {what}{mode}", *(f"# {line}" for line in part.note)]
        blocks.append("\n".join(head) + "\n" + part.text)
    return "\n".join(blocks)
