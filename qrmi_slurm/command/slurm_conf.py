"""`qrmi-slurm slurm-conf`: prints the lines for slurm.conf, plugstack.conf and systemd."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from qrmi_slurm.command import site
from qrmi_slurm.errors import ConfigError

app = typer.Typer()


@app.command(
    "slurm-conf",
    short_help="Print the lines for Slurm and systemd.",
    epilog="""Examples:

\b
  qrmi-slurm slurm-conf
  qrmi-slurm slurm-conf --existing-task-prolog /etc/slurm/task_prolog.sh

If the site has a TaskProlog of its own, name it: the wrapper script that is printed runs both, and Slurm reads the
output of both. The last part is optional: it makes the QPUs licenses, so that jobs wait for them in the queue. Run this
as root to get the license counts from the config.

Exit status: 0, or 2 if Slurm's files cannot hold one of the paths.""",
)
def slurm_conf(
    existing_task_prolog: Annotated[
        Path | None,
        typer.Option(
            "--existing-task-prolog",
            metavar="PATH",
            show_default=False,
            help="The site's own TaskProlog, to go on running.",
        ),
    ] = None,
) -> None:
    """Print the lines for slurm.conf, plugstack.conf and systemd, with the paths of this installation."""
    from qrmi_slurm.checks import installation, setup_lines
    from qrmi_slurm.scheduling import catalogue
    from qrmi_slurm.slurm import conf_file
    from qrmi_slurm.slurm.licenses import granted_counts

    existing = existing_task_prolog.absolute() if existing_task_prolog is not None else None
    path, options, ours = site.slurm_conf(), site.options(), installation.this_one()
    parts = setup_lines.parts(ours, options, path, existing)
    licenses, fault = None, ""
    try:
        counted = granted_counts(conf_file.setting(path, "Licenses") or "")
        licenses = catalogue.licenses(site.resources(options.config_path), counted)
    except ConfigError as error:
        fault = error.message
    part = setup_lines.license_part(ours, path, licenses, fault, options.slots_licenses.values())
    sys.stdout.write(setup_lines.render([*parts, part]))
