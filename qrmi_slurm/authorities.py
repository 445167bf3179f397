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

# Where crate openssl-probe 0.2 looks on Linux; a bundle of this name is Debian's and Ubuntu's.
_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_FOLDER: Final = "/etc/ssl/certs"
_OTHER_FOLDERS: Final = ("/etc/pki/tls/certs", "/etc/security/certificates")

# What says to rustls-native-certs where to look, as to OpenSSL: SSL_CTX_load_verify_locations(3).
FILE: Final = "SSL_CERT_FILE"
DIR: Final = "SSL_CERT_DIR"

# No folder, and nobody can make one of it.
_NO_FOLDER: Final = os.devnull

# Debian's bundle has 220 kB, a certificate 2.
_MAX_BYTES: Final = 1024 * 1024

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----\n"
_END: Final = b"\n-----END CERTIFICATE-----\n"


def variables(
    bundle: str = _BUNDLE, folder: str = _FOLDER, others: tuple[str, ...] = _OTHER_FOLDERS
) -> Mapping[str, str]:
    """Return what makes QRMI read the bundle alone; nothing where it would then believe other authorities.

    Args:
        bundle: the file of all certificates.
        folder: the folder with a file for each.
        others: folders that QRMI looks into as well; where there is one, nothing is said.
    """
    try:
        if not any(map(os.path.lexists, others)) and _has_all(bundle, folder):
            return {FILE: bundle, DIR: _NO_FOLDER}
    except OSError:  # nothing there, too much, or nothing to be read by this process
        pass
    return {}


def _has_all(bundle: str, folder: str) -> bool:
    """Tell whether a bundle has every certificate of a folder, for whoever is to read it."""
    if not os.stat(bundle).st_mode & stat.S_IROTH:  # noqa: PTH116
        return False
    known = frozenset(_of_bundle(_read(bundle)))
    with os.scandir(folder) as entries:
        others = [entry.path for entry in entries if entry.path != bundle and not _is_second_name(entry)]
    return bool(known) and all(known.issuperset(_of_file(path)) for path in others)


def _is_second_name(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a link to its neighbour, as the names by a certificate's hash are."""
    return entry.is_symlink() and os.sep not in os.readlink(entry.path)  # noqa: PTH115 3 us each as a Path


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
        OSError: it cannot be read, or is too large to be what it should be.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
