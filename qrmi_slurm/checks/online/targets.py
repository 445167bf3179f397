"""The targets of a resource's requests: address, proxy, and trusted certificates.

They come from the config's variables and those of `--env:`, as in the hooks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from qrmi_slurm.calls import ca_bundle, proxies
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe, is_endpoint, with_successors
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.text import is_one_line

# QRMI's default addresses (pasqal_cloud_client, DEFAULT_BASE_URL).
_DEFAULT_ENDPOINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "pasqal-cloud": {"QRMI_PASQAL_CLOUD_BASE_URL": "https://apis.pasqal.cloud"}
}

# Addresses that this node does not call: S3 as seen from the service, and proxies, which are not endpoints.
_NOT_FROM_HERE: Final = ("_S3_ENDPOINT_FOR_QSAPI", "_S3_ENDPOINT_FOR_DAAPI", "_PROXY")


@dataclass(frozen=True, slots=True)
class Target:
    """One address that a resource's requests go to.

    Args:
        url: the variable's value.
        proxy: the proxy's URL; None for a direct connection.
        trust: the file of trusted certificates; None for Python's own.
    """

    url: str = field(repr=False)
    proxy: str | None = field(repr=False)
    trust: str | None

    @property
    def host(self) -> str:
        """The service's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The service's port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_tls(self) -> bool:
        """Whether requests use TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def hop(self) -> str:
        """A key for the connection, up to and including TLS; targets with the same key share it."""
        return f"{urlsplit(self.url).scheme}://{self.host}:{self.port} {self.proxy}"


def of_resource(resource: Resource, options: SiteOptions) -> dict[str, Target]:
    """Return a resource's targets, by the variable that contains the address."""
    environment = {**_DEFAULT_ENDPOINTS.get(describe(resource.type).name, {}), **with_successors(resource.environment)}
    found: dict[str, Target] = {}
    for variable, value in environment.items():
        value = value.strip()
        if variable == "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT" and "://" not in value:
            value = f"https://{value}"
        if not is_endpoint(variable) or variable.endswith(_NOT_FROM_HERE) or not _is_url(value):
            continue
        if all(value != other.url for other in found.values()):
            proxy = environment.get("QRMI_OQTOPUS_PROXY") or proxies.proxy_for(value, options.env)
            found[variable] = Target(value, proxy, ca_bundle.bundle(options.env))
    return found


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_one_line(value)
