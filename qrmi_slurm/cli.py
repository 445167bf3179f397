"""The command `qrmi-slurm`: one sub-command for each question of an admin.

Exit status: 0 all is well; 1 the command did its work and found faults; 2 it could not do its work, or was
called wrongly. Results go to standard output, all else to standard error.
"""

import os
import sys
import traceback
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final

import typer

from qrmi_slurm import plugstack, render
from qrmi_slurm.errors import BackendError, ConfigError, QrmiSlurmError
from qrmi_slurm.names import SLURM_CONF

_EXIT_FAULTS: Final = 1
_EXIT_FAILED: Final = 2

_EXAMPLES: Final = """Examples:

\b
  qrmi-slurm validate-config                        check the config that plugstack.conf names
  qrmi-slurm validate-config --strict qrmi_config.json
  qrmi-slurm COMMAND --help                         what a command does, with examples
"""

# rich_markup_mode=None: help is plain text, and nothing in it is read as markup.
app = typer.Typer(
    name="qrmi-slurm",
    help="Quantum computers for Slurm jobs: checks and mends what the hooks of qrmi-slurm use.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """In which form a command prints its result."""

    TEXT = "text"
    JSON = "json"


def _show_version(wanted: bool) -> None:
    if wanted:
        python = ".".join(str(number) for number in sys.version_info[:3])
        typer.echo(f"qrmi-slurm {_version('qrmi-slurm')} (qrmi {_version('qrmi')}, Python {python})")
        raise typer.Exit


def _version(distribution: str) -> str:
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


@app.command(
    "validate-config",
    epilog="""Examples:

\b
  qrmi-slurm validate-config
  qrmi-slurm validate-config /etc/slurm/qrmi_config.json
  qrmi-slurm validate-config --strict --format json new_config.json

Exit status: 0 the config can be used, 1 it has errors, 2 it cannot be read.""",
)
def validate_config(
    path: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="The config to check. Default: the one that the plugin's line in plugstack.conf names.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    output: Annotated[Format, typer.Option("--format", help="text for people, json for programs.")] = Format.TEXT,
) -> None:
    """Report every fault of a qrmi_config.json: where it stands, what is wrong, what to write instead.

    Values of variables are never shown.
    """
    from qrmi_slurm import validate  # jsonschema costs 60 ms, which other commands need not pay

    where = ""
    if path is None:
        options = plugstack.read(_slurm_conf())
        path = options.config_path
        where = f"{options.source} names it" if options.source else "no line in plugstack.conf names another"
    try:
        diagnosis = validate.validate_file(path, _installed_members())
    except ConfigError as error:
        hint = f"{where}; the file is needed on compute nodes only" if where else ""
        raise ConfigError(error.message, error.hint or hint) from error
    if output is Format.JSON:
        sys.stdout.write(render.diagnosis_json(diagnosis, strict=strict) + "\n")
    else:
        render.print_diagnosis(diagnosis, sys.stdout, strict=strict)
    if not diagnosis.is_valid(strict=strict):
        raise typer.Exit(_EXIT_FAULTS)


@app.command(
    # Its options are its own: the emulator reads them, --help among them.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def emulator(context: typer.Context) -> None:
    """Serve emulated quantum services, for trying jobs and configs without a quantum computer."""
    # Its server, Qiskit and Aer are an extra: nobody needs them on a compute node.
    try:
        from qrmi_slurm.emulator import command
    except ModuleNotFoundError as error:
        raise QrmiSlurmError(
            f"the emulator needs {error.name}, which is not installed", "pip install 'qrmi-slurm[emulator]'"
        ) from error
    raise typer.Exit(command.main(context.args))


def _slurm_conf() -> Path:
    return Path(os.environ.get(SLURM_CONF) or plugstack.DEFAULT_SLURM_CONF)


def _installed_members() -> tuple[str, ...]:
    """Return the types that the installed QRMI knows; none where it cannot be asked, which is said."""
    from qrmi_slurm import backend  # imports QRMI when asked

    try:
        return backend.known_members()
    except BackendError as error:
        sys.stderr.write(f"warning: {error}; types are checked against those known to qrmi-slurm alone\n")
        return ()


def main() -> None:
    """Run the command; the console script's entry point."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a name in a config may have letters that the locale has not
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="qrmi-slurm")
    except QrmiSlurmError as error:
        render.print_error(error, sys.stderr)
        sys.exit(_EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 the last line: a surprise becomes one sentence, without its data
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        render.print_error(
            QrmiSlurmError(
                f"internal error: {type(error).__name__} at {place}",
                f"please report it, with the command and the output of: qrmi-slurm --version ({place})",
            ),
            sys.stderr,
        )
        sys.exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()
