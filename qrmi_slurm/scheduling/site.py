"""The site, as the sensor and the admin's switch share it: its paths, the lock between them, what users are told."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import RecordError
from qrmi_slurm.scheduling import catalogue, qpus, state_files
from qrmi_slurm.scheduling.qpus import Listing
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.slurm.plugstack import SiteOptions

_LOCK_FILE: Final = "outages.lock"
_LOCK_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where QPUs are taken out of service and put back.

    Args:
        options: the site's, from the plugin's line.
        slurm_conf: Slurm's configuration file.
    """

    options: SiteOptions
    slurm_conf: Path

    @property
    def state_dir(self) -> Path:
        """The site's state directory."""
        return self.options.state_dir


@contextlib.contextmanager
def changing(site: Site) -> Iterator[None]:
    """Keep every other process from changing what is out of service until the block ends.

    Raises:
        RecordError: another process has been doing so for 30 s, or the state directory cannot be used.
    """
    with state_files.locked(site.state_dir, _LOCK_FILE, _LOCK_WAIT_S) as is_held:
        if not is_held:
            raise RecordError("another qrmi-slurm is changing which QPUs are out of service", "try again")
        yield


def by_license(resources: Sequence[Resource], known: Mapping[str, License]) -> dict[str, list[str]]:
    """Return the names of the resources behind each license, for the licenses that Slurm knows.

    Args:
        resources: those of the config.
        known: Slurm's licenses, by name.
    """
    found: dict[str, list[str]] = {}
    for resource in resources:
        license = resource.slurm.license
        if license is not None and license in known:
            found.setdefault(license, []).append(resource.name)
    return found


def announce(resources: Sequence[Resource], site: Site, listing: Listing | None, notices: Mapping[str, str]) -> None:
    """Tell users which QPUs are out of service: in the list of `qrmi-slurm qpus`, and at submission.

    Args:
        resources: those of the config.
        site: where.
        listing: the new list; None to update the last one, if there is one.
        notices: why QPUs are out of service, by name.

    Raises:
        RecordError: the list cannot be written.
        CatalogueError: the catalogue cannot be written.
    """
    if listing is None:
        with contextlib.suppress(RecordError):
            listing = qpus.read_published(site.state_dir)
    if listing is not None:
        qpus.publish(qpus.with_notices(listing, notices), site.state_dir)
    catalogue_path = catalogue.path_beside(site.slurm_conf)
    if catalogue_path.exists() and not catalogue.is_current(catalogue_path, resources, notices):
        catalogue.write(catalogue_path, resources, notices)
