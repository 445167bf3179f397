"""The certificate authorities that QRMI believes, read once instead of four times for each QPU.

For each of its two HTTP clients QRMI reads the machine's bundle of certificates and then, one by one, the files in the
folder around it. On Debian and Ubuntu each of those stands there under two names, and all of them in the bundle: 580
files for a QPU, half of what its call takes. Where the folder has nothing that the bundle lacks, QRMI need not look.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Final

# Where crate openssl-probe finds them on these systems; those of others are no two of the same.
_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
_FOLDER: Final = "/etc/ssl/certs"

# What says to rustls-native-certs where to look, as to OpenSSL: SSL_CTX_load_verify_locations(3).
FILE: Final = "SSL_CERT_FILE"
DIR: Final = "SSL_CERT_DIR"

# No folder, and nobody can make one of it.
_NO_FOLDER: Final = os.devnull

# A certificate has 2 kB, Debian's bundle 220.
_CHUNK_BYTES: Final = 16 * 1024


def variables(bundle: str = _BUNDLE, folder: str = _FOLDER) -> Mapping[str, str]:
    """Return what makes QRMI read the bundle alone; nothing where it would then believe other authorities.

    Args:
        bundle: the file of all certificates.
        folder: the folder with a file for each.
    """
    try:
        return {FILE: bundle, DIR: _NO_FOLDER} if _has_all(bundle, folder) else {}
    except OSError:  # nothing there, or nothing to be read by this process: QRMI's own search finds what there is
        return {}


def _has_all(bundle: str, folder: str) -> bool:
    """Tell whether a bundle has every certificate of a folder."""
    known = frozenset(_blocks(_read(bundle)))
    with os.scandir(folder) as entries:
        others = [entry for entry in entries if entry.path != bundle and not _is_second_name(entry)]
    for entry in others:
        with contextlib.suppress(IsADirectoryError, FileNotFoundError):  # a link to what is gone
            if not known.issuperset(_blocks(_read(entry.path))):
                return False
    return bool(known)


def _is_second_name(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a link to its neighbour, as the names by a certificate's hash are."""
    return entry.is_symlink() and os.sep not in os.readlink(entry.path)  # noqa: PTH115 3 us each as a Path


def _blocks(content: bytes) -> list[bytes]:
    """Return the blocks of a PEM file, each with its kind."""
    return [block.partition(b"-----END ")[0].strip() for block in content.split(b"-----BEGIN ")[1:]]


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        content = b""
        while chunk := os.read(fd, _CHUNK_BYTES):
            content += chunk
        return content
    finally:
        os.close(fd)
