"""The proxy that a request of QRMI's goes through, from the variables that QRMI's HTTP library reads.

In the hooks QRMI sees only the variables of `--env:` on the plugin's line, not those of slurmd or a shell. The rules
are reqwest's (src/proxy.rs): the scheme's own variable, then ALL_PROXY; NO_PROXY lists domains, which include their
subdomains, addresses, networks, or `*`.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

PROXY_VARIABLES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy for a request; None if it goes directly to the service.

    Args:
        url: the request's URL.
        environment: the variables, in lower or upper case.
    """
    parts = urlsplit(url)
    proxy = _value(environment, f"{parts.scheme}_proxy") or _value(environment, "all_proxy")
    if not proxy or _is_excepted(parts.hostname or "", _value(environment, "no_proxy")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def without_password(proxy: str) -> str:
    """Return a proxy's URL for display: only scheme, host and port."""
    parts = urlsplit(proxy)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    try:
        port = parts.port
    except ValueError:
        port = None
    return f"{parts.scheme}://{host}:{port}" if port else f"{parts.scheme}://{host}"


def _value(environment: Mapping[str, str], name: str) -> str:
    # HTTP_PROXY counts too: only CGI programs must ignore it.
    return environment.get(name) or environment.get(name.upper(), "")


def _is_excepted(host: str, exceptions: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for item in filter(None, map(str.strip, exceptions.split(","))):
        if item == "*":
            return True
        if address is None:
            domain = item.lower().lstrip(".")
            if host.lower() == domain or host.lower().endswith(f".{domain}"):
                return True
            continue
        try:
            if address in ipaddress.ip_network(item, strict=False):
                return True
        except ValueError:
            continue
    return False
