"""The certificate authorities that QRMI believes, read from one file instead of some hundred.

For each of its HTTP clients, two for an IBM QPU, QRMI reads the machine's bundle of certificates and then, one by one,
the files in the folder around it. On Debian and Ubuntu each of those stands there under two names, and all of them in
the bundle: half of what a QPU's call takes. Where the folder has nothing that the bundle lacks, QRMI need not look. In
every case of doubt it looks for itself.
"""

import os
import stat
from collections.abc import Mapping
from typing import Final

# Where rustls-native-certs, which QRMI's HTTP client uses, finds the system's bundle (crate openssl-probe).
_SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

# Where crate openssl-probe 0.2 looks on Linux; a bundle of this name is Debian's and Ubuntu's.
_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_FOLDER: Final = "/etc/ssl/certs"
_OTHER_FOLDERS: Final = ("/etc/pki/tls/certs", "/etc/security/certificates")

# What a name in the folder may be a link to: Debian's certificates and the admin's, update-ca-certificates(8). Anything
# else may lie on a server that hangs, and nothing here has a deadline.
_SHARES: Final = ("/usr/share/ca-certificates/", "/usr/local/share/ca-certificates/")

# What says to rustls-native-certs where to look, as to OpenSSL: SSL_CTX_load_verify_locations(3).
FILE: Final = "SSL_CERT_FILE"
DIR: Final = "SSL_CERT_DIR"

# No folder, and nobody can make one of it.
_NO_FOLDER: Final = os.devnull

# Debian's bundle has 220 kB, a certificate 2.
_MAX_BYTES: Final = 1024 * 1024

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----\n"
_END: Final = b"\n-----END CERTIFICATE-----\n"


def bundle(env: Mapping[str, str]) -> str | None:
    """Return the bundle that QRMI trusts; None where it finds none.

    Args:
        env: the site's `--env:` variables, of which SSL_CERT_FILE counts.
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
    """Return what makes QRMI read the bundle alone; nothing where it would then believe other authorities.

    Args:
        bundle: the file of all certificates.
        folder: the folder with a file for each.
        others: folders that QRMI looks into as well; where there is one, nothing is said.
        shares: where a link in the folder may lead to, each with a slash at its end.
    """
    try:
        if not any(map(os.path.lexists, others)) and _has_all(bundle, folder, shares):
            return {FILE: bundle, DIR: _NO_FOLDER}
    except OSError:  # nothing there, too much, or nothing to be read by this process
        pass
    return {}


def _has_all(bundle: str, folder: str, shares: tuple[str, ...]) -> bool:
    """Tell whether a bundle has every certificate of a folder, for whoever is to read it."""
    if not os.stat(bundle).st_mode & stat.S_IROTH:  # noqa: PTH116
        return False
    known = frozenset(_of_bundle(_read(bundle)))
    with os.scandir(folder) as entries:
        others = [_file_of(entry, shares) for entry in entries if entry.path != bundle]
    return bool(known) and all(known.issuperset(_of_file(path)) for path in others if path)


def _file_of(entry: os.DirEntry[str], shares: tuple[str, ...]) -> str:
    """Return the file that an entry stands for; none for a link to its neighbour, as names by a hash are.

    Raises:
        OSError: it is a link to elsewhere.
    """
    if not entry.is_symlink():
        return entry.path
    target = os.readlink(entry.path)  # noqa: PTH115 3 us each as a Path
    if os.sep not in target:
        return ""
    if not target.startswith(shares) or "/../" in target:
        raise OSError(f"{entry.path} leads elsewhere")
    return target


def _of_bundle(content: bytes) -> list[bytes]:
    """Return the certificates of a bundle; none where it is not as plain as Debian makes it."""
    before, *parts = (b"\n" + content).split(b"\n" + _BEGIN)
    found = []
    for part in parts:
        body, end, after = (part + b"\n").partition(_END)
        if not end or b"-----" in body or b"-----" in after:
            return []
        found.append(body.strip())
    return found if b"-----" not in before else []


def _of_file(path: str) -> list[bytes]:
    """Return what stands in a file after each mark of a beginning, of whatever kind, wherever in a line."""
    try:
        content = _read(path)
    except FileNotFoundError:  # a link to what is gone
        return []
    begin = _BEGIN.strip().removeprefix(b"-----BEGIN ")
    return [block.removeprefix(begin).partition(b"-----END ")[0].strip() for block in content.split(b"-----BEGIN ")[1:]]


def _read(path: str) -> bytes:
    """Return a file's content; nothing of what is no regular file.

    Raises:
        OSError: it cannot be read, is a link, or is too large to be what it should be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        content = os.read(fd, status.st_size + 1) if status.st_size <= _MAX_BYTES else b""
        if len(content) != status.st_size:
            raise OSError(f"{path} is no file of certificates")
        return content
    finally:
        os.close(fd)
