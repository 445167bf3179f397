"""Slurm's settings and the site's options for the tests of the doctor, and its results."""

from pathlib import Path

from qrmi_slurm.slurm import plugstack, settings


def settings_of(**values):
    """Return settings as slurmctld would report them."""
    return settings.parse("".join(f"{name} = {value}\n" for name, value in values.items()))


def options_of(**values):
    """Return the site's options: the defaults with some changes."""
    return plugstack.SiteOptions(config_path=Path("/etc/slurm/qrmi_config.json"))._replace(**values)


def levels(results):
    """Return the level of each result by its name."""
    return {result.name: result.level.value for result in results}
