"""The lines that an installation needs in slurm.conf and plugstack.conf, and its systemd units.

They are printed, never written: those files belong to the admin.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.slurm import conf_file, prolog_flags
from qrmi_slurm.slurm.licenses import names_in
from qrmi_slurm.slurm.plugstack import DEFAULT_STATE_DIR, PLUGIN_FILE, SLOTS_LICENSE, SiteOptions
from qrmi_slurm.text import printable

# slurm.conf, plugstack.conf and systemd all take such a path as one word; none of them has a way to quote a space.
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9_./+@:,=-]*")

_WRAPPER_NAME: Final = "task_prolog"

_WRAPPER: Final = """\
#!/bin/sh
# TaskProlog= of slurm.conf: the site's own, then qrmi-slurm's. slurmstepd reads the output of both.
{existing} || exit
echo
exec {ours}
"""

# The units and what to add above them. In the checkout they name the installation of README.
_UNITS: Final = {
    "qrmi-slurm-recover.service": "",
    "qrmi-slurm-recover.timer": "On every compute node: systemctl enable --now qrmi-slurm-recover.timer",
    "qrmi-slurm-sensor.service": "",
    "qrmi-slurm-sensor.timer": "On that node: systemctl enable --now qrmi-slurm-sensor.timer",
    "qrmi-slurm-qpus.service": "",
    "qrmi-slurm-qpus.timer": "On that node: systemctl enable --now qrmi-slurm-qpus.timer",
}
_UNITS_PREFIX: Final = "/opt/qrmi-slurm"

# What ProtectSystem=full and ProtectHome=read-only keep the units from writing to: systemd.exec(5).
_PROTECTED: Final = tuple(map(Path, ("/usr", "/boot", "/efi", "/etc", "/home", "/root", "/run/user")))


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs in one file.

    Args:
        path: the file.
        text: its lines.
        is_whole: whether they are the whole file; otherwise they are added to it.
        mode: the file's mode, for a whole file whose mode matters.
        note: what to know about it, as comment lines.
        purpose: what the lines are for, if not everybody needs them.
        is_on_controller: whether it is slurmctld's file, of which this node has a copy.
    """

    path: Path
    text: str
    is_whole: bool
    mode: int | None = None
    note: tuple[str, ...] = ()
    purpose: str = ""
    is_on_controller: bool = False


def parts(
    installation: Installation, options: SiteOptions, slurm_conf: Path, existing_task_prolog: Path | None = None
) -> list[Part]:
    """Return what an installation needs in other files.

    Args:
        installation: the installation whose paths to use.
        options: the site's current options, for the plugin's line.
        slurm_conf: Slurm's configuration file; for slurmd's copy of it, the parts name slurmctld's file.
        existing_task_prolog: the site's own TaskProlog, which should keep running.

    Raises:
        QrmiSlurmError: a path cannot be used in these files, or slurm.conf exists and cannot be read.
    """
    paths = [installation.prefix, options.config_path, options.state_dir, conf_file.local_folder(slurm_conf)]
    for path in (*paths, *([existing_task_prolog] if existing_task_prolog else [])):
        if not _PLAIN_PATH.fullmatch(str(path)):
            hint = "Slurm's files have no quoting; use a path of letters, digits and _ . / + @ : , = -"
            raise QrmiSlurmError(f"{path} cannot be used in slurm.conf", hint)
    task_prolog, found = installation.task_prolog, []
    if existing_task_prolog is not None:
        wrapper = _task_prolog_wrapper(installation, slurm_conf, existing_task_prolog)
        task_prolog, found = wrapper.path, [wrapper]
    found.append(_slurm_conf_part(installation, task_prolog, slurm_conf, options.acquire_timeout_s))
    found.append(_plugstack_part(installation, options, slurm_conf))
    return [*found, *_systemd_parts(installation, options.state_dir, slurm_conf)]


def _task_prolog_wrapper(installation: Installation, slurm_conf: Path, existing: Path) -> Part:
    """Return a script that runs the site's own TaskProlog and then ours."""
    path = conf_file.local_folder(slurm_conf) / _WRAPPER_NAME
    if existing == path:
        path = path.with_name(f"{_WRAPPER_NAME}_qrmi")
    text = _WRAPPER.format(existing=shlex.quote(str(existing)), ours=shlex.quote(str(installation.task_prolog)))
    note = "Runs the site's own TaskProlog first. Users run it: mode 0755, on every compute node."
    return Part(path, text, is_whole=True, mode=0o755, note=(note,))


def _slurm_conf_part(installation: Installation, task_prolog: Path, slurm_conf: Path, acquire_timeout_s: float) -> Part:
    present = (conf_file.setting(slurm_conf, "PrologFlags") or "").split(",")
    flags = prolog_flags.wanted_flags([word.strip() for word in present if word.strip()])
    lines = [
        f"Prolog={installation.prolog}",
        f"TaskProlog={task_prolog}",
        f"Epilog={installation.epilog}",
        f"PrologFlags={','.join(flags)}",
    ]
    start_timeout = conf_file.setting(slurm_conf, "BatchStartTimeout") or ""
    wanted_s = prolog_flags.start_timeout_s(acquire_timeout_s)
    if prolog_flags.step_waits(flags) and not (start_timeout.isdecimal() and int(start_timeout) >= wanted_s):
        lines.append(f"BatchStartTimeout={wanted_s}")
    note = (
        "With your own Prolog or Epilog, name a folder instead (Prolog=/etc/slurm/prolog.d/*) and link these into it.",
        "PrologFlags replaces the line in slurm.conf. You may add NoHold to it: docs/admin.md, step 5.",
    )
    return _added(slurm_conf, slurm_conf.name, lines, note)


def _added(slurm_conf: Path, name: str, lines: Sequence[str], note: tuple[str, ...], purpose: str = "") -> Part:
    """Return lines to add to slurm.conf or a file beside it; for slurmd's copy, to the file on slurmctld's node."""
    path, is_copy = conf_file.local_folder(slurm_conf) / name, conf_file.is_copy(slurm_conf)
    text = "\n".join(lines) + "\n"
    return Part(path, text, is_whole=False, note=note, purpose=purpose, is_on_controller=is_copy)


def _plugstack_part(installation: Installation, options: SiteOptions, slurm_conf: Path) -> Part:
    plugin = installation.plugin()
    words = ["optional", str(plugin or installation.lib / PLUGIN_FILE), str(options.config_path)]
    if options.state_dir != DEFAULT_STATE_DIR:
        words.append(f"--state-dir={options.state_dir}")
    words += [f"{SLOTS_LICENSE}:{name}={license}" for name, license in options.slots_licenses.items()]
    note = ["Login nodes need only the first two words."]
    if plugin is None:
        make = f"make -C cli_filter install SLURM_PLUGIN_DIR={installation.lib}"
        note.insert(0, f"The plugin is not built yet. In a checkout, run: {make}")
    return _added(slurm_conf, "plugstack.conf", [" ".join(words)], tuple(note))


def _systemd_parts(installation: Installation, state_dir: Path, slurm_conf: Path) -> list[Part]:
    found = []
    for name, note in _UNITS.items():
        text = _unit_text(name).replace(f"{_UNITS_PREFIX}/", f"{installation.prefix}/")
        # The command finds slurmd's copy by itself.
        if slurm_conf != conf_file.DEFAULT_SLURM_CONF and not conf_file.is_copy(slurm_conf):
            text = text.replace("\nExecStart=", f"\nEnvironment=SLURM_CONF={slurm_conf}\nExecStart=")
        # Only the sensor writes the catalogue, which is beside slurm.conf.
        written = [state_dir, slurm_conf.parent] if name == "qrmi-slurm-sensor.service" else [state_dir]
        for path in written:
            if any(path.is_relative_to(place) for place in _PROTECTED) and f"ReadWritePaths=-{path}\n" not in text:
                text = text.replace("\nProtectSystem=full\n", f"\nProtectSystem=full\nReadWritePaths=-{path}\n")
        found.append(Part(Path("/etc/systemd/system") / name, text, is_whole=True, note=(note,) if note else ()))
    return found


def license_part(
    installation: Installation,
    slurm_conf: Path,
    wanted: Mapping[str, int] | None,
    fault: str,
    of_slots: Iterable[str] = (),
) -> Part:
    """Return the lines that make jobs wait for QPUs in the queue; each replaces the same line of slurm.conf.

    Args:
        installation: the installation whose paths to use.
        slurm_conf: Slurm's configuration file.
        wanted: the count of each license of the config; None if the config cannot be read.
        fault: why it cannot be read.
        of_slots: the licenses that count slots; how many there are is the site's to say.

    Raises:
        PlugstackError: slurm.conf exists and cannot be read.
    """

    def before(name: str) -> str:
        return conf_file.setting(slurm_conf, name) or ""

    lines = [f"{name}={_with_words(before(name), ['lua'])}" for name in ("JobSubmitPlugins", "CliFilterPlugins")]
    if wanted is None:
        lines.insert(0, f"# Licenses= needs the config: {printable(fault)}")
    elif wanted:
        lines.insert(0, f"Licenses={with_counts(before('Licenses'), wanted)}")
        tracked = _with_words(before("AccountingStorageTRES"), [f"license/{name}" for name in wanted])
        has_database = before("AccountingStorageType").lower().endswith("slurmdbd")
        lines.append(f"{'' if has_database else '# with slurmdbd: '}AccountingStorageTRES={tracked}")
    # Remote licenses are in slurmdbd's list.
    missing = [name for name in dict.fromkeys(of_slots) if "@" not in name and name not in names_in(before("Licenses"))]
    if missing:
        lines.append(f"# for slots, add to Licenses=: {','.join(f'{name}:NUMBER' for name in missing)}")
    note, purpose = _license_note(installation, slurm_conf), "to let jobs wait for QPUs (optional)"
    return _added(slurm_conf, slurm_conf.name, lines, note, purpose)


def _license_note(installation: Installation, slurm_conf: Path) -> tuple[str, ...]:
    lua_dir = installation.lua_dir()
    etc, lua = conf_file.local_folder(slurm_conf), lua_dir or installation.lib / "lua"
    client = f"  on every node:      install -m 0644 {lua}/cli_filter.lua {etc}/"
    if conf_file.is_copy(slurm_conf):
        client = (
            f"  there, too:         install -m 0644 {lua}/cli_filter.lua {etc}/\n"
            "Slurm sends cli_filter.lua to the nodes from 23.11 on. With an older one, leave CliFilterPlugins as it is."
        )
    note = [
        "Optional. With these lines a job waits in the queue until its QPUs are free; without them it starts whether",
        "they are free or not, and nothing else changes. They replace the same lines of slurm.conf. Install the files",
        "first: slurmctld does not start without the first one, and sbatch, srun and salloc fail without the second.",
        f"  on the controller:  install -m 0644 {lua}/job_submit.lua {etc}/ && {installation.command} catalogue",
        *client.splitlines(),
        "If you have such files of your own, docs/scheduling.md has the lines to add to them; they begin with",
        f'  package.path = "{lua}/?.lua;" .. package.path',
    ]
    if lua_dir is None:
        make = f"make -C cli_filter install-lua SLURM_PLUGIN_DIR={installation.lib}"
        note.insert(0, f"These files are not installed yet. In a checkout, run: {make}")
    return tuple(note)


def with_counts(before: str, wanted: Mapping[str, int]) -> str:
    """Return `Licenses=` of slurm.conf with some counts replaced or added.

    Args:
        before: its current value: names, each with a count after `:` (or `=`), separated by commas.
        wanted: the counts that it should have.
    """
    kept = [word.strip() for word in re.split(r"[,;]", before) if re.split(r"[:=]", word)[0].strip() not in wanted]
    return ",".join([*filter(None, kept), *(f"{name}:{count}" for name, count in wanted.items())])


def _with_words(before: str, wanted: Sequence[str]) -> str:
    words = [word.strip() for word in before.split(",") if word.strip()]
    return ",".join([*words, *(word for word in wanted if word not in words)])


def _unit_text(name: str) -> str:
    """Return a unit, from the installed package or from the checkout that the package is in."""
    package = Path(str(resources.files("qrmi_slurm")))
    for folder in (package / "systemd", package.parent / "systemd"):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise QrmiSlurmError(f"{name} is missing from the installation", "reinstall qrmi-slurm")


def render(found: list[Part]) -> str:
    """Return all parts as text, each with its file and note above it as comment lines."""
    blocks = []
    for part in found:
        what = f"{part.path} on slurmctld's node" if part.is_on_controller else f"{part.path}"
        what += "" if part.is_whole else ": add"
        what += f", {part.purpose}" if part.purpose else ""
        mode = f" (mode {part.mode:04o})" if part.mode is not None else ""
        head = [f"### {what}{mode}", *(f"# {line}" for line in part.note)]
        blocks.append("\n".join(head) + "\n" + part.text)
    return "\n".join(blocks)
