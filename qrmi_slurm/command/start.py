"""The command's entry point, which ends at once where there is nothing to do.

A timer runs `qrmi-slurm recover` every minute on every node, mostly in vain. To find that out takes a sixth of the time
that loading the command line takes (docs/benchmarks.md).
"""

import sys


def main() -> None:
    """Run the command; the console script's entry point."""
    if sys.argv[1:] == ["recover"] and _is_nothing_recorded():
        return
    from qrmi_slurm.command import cli

    cli.main()


def _is_nothing_recorded() -> bool:
    """Tell whether `recover` would find nothing and say nothing; if in doubt, the command itself finds out."""
    from qrmi_slurm.command import site
    from qrmi_slurm.errors import QrmiSlurmError
    from qrmi_slurm.slurm import plugstack
    from qrmi_slurm.state import inventory

    try:
        slurm_conf = site.slurm_conf()
        return slurm_conf.exists() and not inventory.has_folders(plugstack.read(slurm_conf).state_dir)
    except (QrmiSlurmError, OSError):
        return False
