"""The certificate authorities that QRMI trusts, read from one file instead of some hundred.

Each of QRMI's HTTP clients (two for an IBM QPU) reads the machine's certificate bundle and then every file in the
folder around it. On Debian and Ubuntu each certificate is there under two names and again in the bundle, and reading
them takes half the time of a call. If the folder adds nothing to the bundle, QRMI is told to read only the bundle;
in any doubt it is told nothing.
"""

import os
import stat
from collections.abc import Mapping
from typing import Final

# Where QRMI's HTTP client (rustls-native-certs, crate openssl-probe) looks for the system's bundle.
_SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

# Where crate openssl-probe 0.2 looks on Linux; the bundle has this name on Debian and Ubuntu.
_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_FOLDER: Final = "/etc/ssl/certs"
_OTHER_FOLDERS: Final = ("/etc/pki/tls/certs", "/etc/security/certificates")

# Where links in the folder may lead: Debian's certificates and the admin's, update-ca-certificates(8). Other targets
# may be on a file server that hangs, and reading here has no deadline.
_SHARES: Final = ("/usr/share/ca-certificates/", "/usr/local/share/ca-certificates/")

# The variables that tell rustls-native-certs and OpenSSL where to look: SSL_CTX_load_verify_locations(3).
FILE: Final = "SSL_CERT_FILE"
DIR: Final = "SSL_CERT_DIR"

# Not a folder, and nobody can make it one.
_NO_FOLDER: Final = os.devnull

# Debian's bundle is 220 kB, a certificate 2 kB.
_MAX_BYTES: Final = 1024 * 1024

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----\n"
_END: Final = b"\n-----END CERTIFICATE-----\n"


def bundle(env: Mapping[str, str]) -> str | None:
    """Return the bundle that QRMI reads; None if there is none.

    Args:
        env: the site's `--env:` variables; SSL_CERT_FILE overrides the system's bundle.
    """
    named = env.get(FILE)
    if named:
        return named
    return next((path for path in _SYSTEM_BUNDLES if os.path.exists(path)), None)  # noqa: PTH110


def variables(
    bundle: str = _BUNDLE,
    folder: str = _FOLDER,
    others: tuple[str, ...] = _OTHER_FOLDERS,
    shares: tuple[str, ...] = _SHARES,
) -> Mapping[str, str]:
    """Return the variables that make QRMI read only the bundle; empty if that would change whom it trusts.

    Args:
        bundle: the file with all certificates.
        folder: the folder with a file for each certificate.
        others: other folders that QRMI reads; if one of them exists, the result is empty.
        shares: where links in the folder may lead, each with a slash at the end.
    """
    try:
        if not any(map(os.path.lexists, others)) and _has_all(bundle, folder, shares):
            return {FILE: bundle, DIR: _NO_FOLDER}
    except OSError:  # missing, too large, or not readable
        pass
    return {}


def _has_all(bundle: str, folder: str, shares: tuple[str, ...]) -> bool:
    """Tell whether a bundle has every certificate of a folder and everybody can read it."""
    if not os.stat(bundle).st_mode & stat.S_IROTH:  # noqa: PTH116
        return False
    known = frozenset(_of_bundle(_read(bundle)))
    with os.scandir(folder) as entries:
        others = [_file_of(entry, shares) for entry in entries if entry.path != bundle]
    return bool(known) and all(known.issuperset(_of_file(path)) for path in others if path)


def _file_of(entry: os.DirEntry[str], shares: tuple[str, ...]) -> str:
    """Return the file behind an entry; empty for a link within the folder, such as a name by hash.

    Raises:
        OSError: it is a link to another place.
    """
    if not entry.is_symlink():
        return entry.path
    target = os.readlink(entry.path)  # noqa: PTH115 3 us each as a Path
    if os.sep not in target:
        return ""
    if not target.startswith(shares) or "/../" in target:
        raise OSError(f"{entry.path} links to another place")
    return target


def _of_bundle(content: bytes) -> list[bytes]:
    """Return the certificates of a bundle; none unless it is as simple as Debian's."""
    before, *parts = (b"\n" + content).split(b"\n" + _BEGIN)
    found = []
    for part in parts:
        body, end, after = (part + b"\n").partition(_END)
        if not end or b"-----" in body or b"-----" in after:
            return []
        found.append(body.strip())
    return found if b"-----" not in before else []


def _of_file(path: str) -> list[bytes]:
    """Return the text after each BEGIN marker in a file, of any kind and anywhere in a line."""
    try:
        content = _read(path)
    except FileNotFoundError:  # a dangling link
        return []
    begin = _BEGIN.strip().removeprefix(b"-----BEGIN ")
    return [block.removeprefix(begin).partition(b"-----END ")[0].strip() for block in content.split(b"-----BEGIN ")[1:]]


def _read(path: str) -> bytes:
    """Return a file's content; empty if it is not a regular file.

    Raises:
        OSError: it cannot be read, is a link, or is too large.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        content = os.read(fd, status.st_size + 1) if status.st_size <= _MAX_BYTES else b""
        if len(content) != status.st_size:
            raise OSError(f"{path} is too large, or changed while it was read")
        return content
    finally:
        os.close(fd)
