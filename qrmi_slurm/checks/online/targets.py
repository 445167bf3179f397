"""The targets: where a resource's requests go, by which proxy, and whose certificates are believed there.

From the config's variables and those of `--env:`, as in the hooks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from qrmi_slurm.calls import ca_bundle, proxies
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe, is_endpoint
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.text import is_one_line

# Where QRMI goes without a variable (pasqal_cloud_client, DEFAULT_BASE_URL).
_DEFAULT_ENDPOINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "pasqal-cloud": {"QRMI_PASQAL_CLOUD_BASE_URL": "https://apis.pasqal.cloud"}
}

# Addresses that are not asked from here: S3 as the service sees it, and a proxy is no endpoint.
_NOT_FROM_HERE: Final = ("_S3_ENDPOINT_FOR_QSAPI", "_S3_ENDPOINT_FOR_DAAPI", "_PROXY")


@dataclass(frozen=True, slots=True)
class Target:
    """One address that a resource's requests go to.

    Args:
        url: the variable's value.
        proxy: the proxy's URL; None: straight.
        trust: the file of certificates to believe; None: Python's own.
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
        """Its port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_tls(self) -> bool:
        """Whether requests go over TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def hop(self) -> str:
        """What requests share from the first packet to the end of TLS."""
        return f"{urlsplit(self.url).scheme}://{self.host}:{self.port} {self.proxy}"


def of_resource(resource: Resource, options: SiteOptions) -> dict[str, Target]:
    """Return the addresses of a resource by the variable that says so."""
    environment = {**_DEFAULT_ENDPOINTS.get(describe(resource.type).name, {}), **resource.variables}
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
