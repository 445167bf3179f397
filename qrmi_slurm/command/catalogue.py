"""`qrmi-slurm catalogue`: writes the list of QPUs that Slurm's Lua plugins read."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS
from qrmi_slurm.errors import CatalogueError

app = typer.Typer()


@app.command(
    short_help="Write the list of QPUs for Slurm's Lua plugins.",
    epilog="""Examples:

\b
  qrmi-slurm catalogue
  qrmi-slurm catalogue --check
  qrmi-slurm catalogue --output /shared/etc/slurm/qrmi_catalogue.lua

Run it as root on a node that has the config, after each change to the config. job_submit.lua on the controller and
cli_filter.lua on login nodes read the file at the next submission. It holds names, licenses and access rules, and no
secret.

Exit status: 0, 1 if --check finds the file missing or out of date, 2 if it cannot be read or written.""",
)
def catalogue(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="PATH",
            show_default=False,
            help="File to write. Default: qrmi_catalogue.lua beside slurm.conf.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; tell whether the file agrees with the config.")
    ] = False,
) -> None:
    """Write the catalogue for job_submit.lua and cli_filter.lua: the QPUs, their licenses and who may use them."""
    from qrmi_slurm.scheduling.catalogue import is_current, path_beside, write
    from qrmi_slurm.slurm import conf_file

    path = output or path_beside(site.slurm_conf())
    if output is None and conf_file.is_copy(site.slurm_conf()):
        hint = "run this on slurmctld's node, or name a file with --output"
        raise CatalogueError(f"{path.parent} is slurmd's copy of slurmctld's files", hint)
    options = site.options()
    resources = site.resources(options.config_path, options.slots_licenses)
    notices = site.notices(resources)
    if not check:
        write(path, resources, notices)
        sys.stdout.write(f"{path}: {render.counted(len(resources), 'QPU')}\n")
    elif is_current(path, resources, notices):
        sys.stdout.write(f"{path}: up to date\n")
    else:
        sys.stdout.write(f"{path}: missing or out of date; run: qrmi-slurm catalogue\n")
        raise typer.Exit(EXIT_PROBLEMS)
