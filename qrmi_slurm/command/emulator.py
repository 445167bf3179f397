"""`qrmi-slurm emulator`: serves emulated quantum services."""

import typer

from qrmi_slurm.errors import QrmiSlurmError

app = typer.Typer()


@app.command(
    short_help="Serve emulated quantum services.",
    # The emulator parses its own options, --help included.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def emulator(context: typer.Context) -> None:
    """Serve emulated quantum services, to try jobs and configs without a quantum computer."""
    # Its server, Qiskit and Aer are an extra: nobody needs them on a compute node.
    try:
        from qrmi_slurm.emulator import command
    except ModuleNotFoundError as error:
        raise QrmiSlurmError(
            f"the emulator needs {error.name}, which is not installed", "pip install 'qrmi-slurm[emulator]'"
        ) from error
    raise typer.Exit(command.main(context.args))
