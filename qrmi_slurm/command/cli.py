"""The command `qrmi-slurm`: each sub-command answers one question of an admin, and has its own file in this folder.

Exit status: 0 success; 1 the command ran and found problems; 2 it could not run, or was called wrongly. Results go to
standard output, everything else to standard error.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Final

import typer

from qrmi_slurm.command import (
    catalogue,
    doctor,
    drain,
    emulator,
    qpus,
    recover,
    release,
    render,
    report,
    sensor,
    slurm_conf,
    status,
    validate_config,
    why,
)
from qrmi_slurm.command.parameters import EXIT_FAILED
from qrmi_slurm.errors import QrmiSlurmError

_EXAMPLES: Final = """Examples:

\b
  qrmi-slurm validate-config                        check the config named in plugstack.conf
  qrmi-slurm validate-config --strict qrmi_config.json
  qrmi-slurm why 4711                               say why job 4711 waits, or has failed
  qrmi-slurm status                                 show which job holds which QPU
  qrmi-slurm recover                                release what the hooks could not
  qrmi-slurm doctor                                 check this node's setup
  qrmi-slurm qpus                                   list the QPUs, and whether they can be used now
  qrmi-slurm report --by account                    report who held which QPU, and for how long
  qrmi-slurm drain ibm_quebec --reason "..."        make its jobs wait; undo: qrmi-slurm resume ibm_quebec
  qrmi-slurm sensor                                 make jobs wait for QPUs that are offline; for a timer
  qrmi-slurm slurm-conf                             print the lines for slurm.conf, plugstack.conf and systemd
  qrmi-slurm catalogue                              write the list of QPUs for Slurm's Lua plugins
  qrmi-slurm COMMAND --help                         show what a command does, with examples
"""

# rich_markup_mode=None: help is plain text, and nothing in it is read as markup.
app = typer.Typer(
    name="qrmi-slurm",
    help="Set up, check and manage the quantum computers that Slurm jobs use.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order in which --help shows them.
app.registered_commands += [
    command
    for module in (
        validate_config,
        why,
        status,
        recover,
        release,
        doctor,
        slurm_conf,
        qpus,
        catalogue,
        drain,
        sensor,
        report,
        emulator,
    )
    for command in module.app.registered_commands
]


def _show_version(wanted: bool) -> None:
    if wanted:
        python = ".".join(str(number) for number in sys.version_info[:3])
        typer.echo(f"qrmi-slurm {_version('qrmi-slurm')} (qrmi {_version('qrmi')}, Python {python})")
        raise typer.Exit


def _version(distribution: str) -> str:
    from importlib import metadata  # 40 ms

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the versions and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; `start` calls this."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # the locale may lack letters of a name in the config
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="qrmi-slurm")
    except BrokenPipeError:  # `qrmi-slurm status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except QrmiSlurmError as error:
        render.print_error(error, sys.stderr)
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 the last handler: a bug becomes one sentence, without the data
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        render.print_error(
            QrmiSlurmError(
                f"internal error: {type(error).__name__} at {place}",
                f"please report it, with the command and the output of: qrmi-slurm --version ({place})",
            ),
            sys.stderr,
        )
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
