"""`qrmi-slurm emulator`: serves emulated quantum services."""

import os
import sys

import typer

app = typer.Typer()


@app.command(
    short_help="Serve emulated quantum services.",
    # The emulator parses its own options, --help included.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def emulator(context: typer.Context) -> None:
    """Serve emulated quantum services, to try jobs and configs without a quantum computer."""
    # A program of its own, with an extra of its own. -P: files in the current directory do not shadow modules.
    os.execv(sys.executable, [sys.executable, "-P", "-X", "utf8", "-m", "qrmi_emulator", *context.args])  # noqa: S606
