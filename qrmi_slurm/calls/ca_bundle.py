"""The certificate authorities that QRMI trusts, read from one file instead of some hundred.

Each of QRMI's HTTP clients (two for an IBM QPU) reads the machine's certificate bundle and then every file in the
folder around it. On Debian and Ubuntu each certificate is there under two names and again in the bundle, and reading
them takes half the time of a call. If the folder adds nothing to the bundle, QRMI is told to read only the bundle;
in any doubt it is told nothing. Looking takes 3 ms of CPU, most of which a note about unchanged files saves.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from qrmi_slurm import files

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

# The files that were compared, and when each had changed last; only root writes here, and a boot removes it.
_NOTE: Final = Path("/run/qrmi-slurm-ca-bundle")

# Two changes in one tick of the kernel's clock have the same time. A file that is this old, in ns, shows the next one.
_SETTLED_NS: Final = 2_000_000_000

# Not a folder, and nobody can make it one.
_NO_FOLDER: Final = os.devnull

# Debian's bundle is 220 kB, a certificate 2 kB.
_MAX_BYTES: Final = 1024 * 1024

_DASHES: Final = b"-----BEGIN "
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
    note: Path = _NOTE,
) -> Mapping[str, str]:
    """Return the variables that make QRMI read only the bundle; empty if that would change whom it trusts.

    Args:
        bundle: the file with all certificates.
        folder: the folder with a file for each certificate.
        others: other folders that QRMI reads; if one of them exists, the result is empty.
        shares: where links in the folder may lead, each with a slash at the end.
        note: where to remember what was compared.
    """
    try:
        if any(map(os.path.lexists, others)):
            return {}
        if not _is_noted(note, bundle, folder):
            paths = [path for path in _files_in(folder, shares) if path != bundle]
            compared = _state_of([bundle, folder, *paths])
            if not _has_all(bundle, paths):
                return {}
            _remember(note, compared)
    except OSError:  # missing, too large, or not readable
        return {}
    return {FILE: bundle, DIR: _NO_FOLDER}


def _is_noted(note: Path, bundle: str, folder: str) -> bool:
    """Tell whether the same files were compared before, and none has changed since."""
    try:
        text = os.fsdecode(files.read(note))
    except OSError:
        return False
    paths = [line.partition(" ")[2] for line in text.split("\n")]
    return paths[:2] == [bundle, folder] and _state_of(paths) == text


def _state_of(paths: Iterable[str]) -> str:
    """Return a line for each path: when it last changed, in ns, and its name; 0 for one that is not there."""
    return "\n".join(f"{_changed_ns(path)} {path}" for path in paths)


def _changed_ns(path: str) -> int:
    if "\n" in path:
        raise OSError("a name with a line end")
    try:
        return os.lstat(path).st_ctime_ns
    except FileNotFoundError:
        return 0


def _remember(note: Path, compared: str) -> None:
    newest_ns = max(int(line.partition(" ")[0]) for line in compared.split("\n"))
    if newest_ns < time.time_ns() - _SETTLED_NS:
        with contextlib.suppress(OSError):  # not root, or /run is read-only
            files.replace(note, os.fsencode(compared), 0o600, is_durable=False)


def _has_all(bundle: str, paths: Iterable[str]) -> bool:
    """Tell whether a bundle has every certificate in some files and everybody can read it."""
    if not os.stat(bundle).st_mode & stat.S_IROTH:  # noqa: PTH116
        return False
    known = frozenset(_of_bundle(_read(bundle)))
    return bool(known) and known.issuperset(_of_any(b"\n".join(map(_read_or_nothing, paths))))


def _files_in(folder: str, shares: tuple[str, ...]) -> list[str]:
    """Return the files in a folder or behind its links, but not behind links within it, such as names by hash.

    Raises:
        OSError: a link leads to another place.
    """
    found = []
    folder_fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        with os.scandir(folder_fd) as entries:
            for entry in entries:
                if not entry.is_symlink():
                    found.append(f"{folder}/{entry.name}")
                    continue
                target = os.readlink(entry.name, dir_fd=folder_fd)
                if os.sep not in target:
                    continue
                if not target.startswith(shares) or "/../" in target:
                    raise OSError(f"{folder}/{entry.name} links to another place")
                found.append(target)
    finally:
        os.close(folder_fd)
    return found


def _of_bundle(content: bytes) -> list[bytes]:
    """Return the certificates of a bundle; none unless it is as simple as Debian's."""
    before, *parts = (b"\n" + content).split(b"\n" + _BEGIN)
    # Two dashed lines for each certificate, each with dashes on both sides, and no others.
    if b"-----" in before or content.count(b"-----") != 4 * len(parts):
        return []
    found = [(part + b"\n").partition(_END) for part in parts]
    return [body.strip() for body, _, _ in found] if all(end for _, end, _ in found) else []


def _of_any(content: bytes) -> list[bytes]:
    """Return the text after each BEGIN marker, of any kind and anywhere in a line."""
    begin = _BEGIN.strip().removeprefix(_DASHES)
    _, *blocks = content.split(_DASHES)
    return [block.removeprefix(begin).partition(b"-----END ")[0].strip() for block in blocks]


def _read_or_nothing(path: str) -> bytes:
    """Return a file's content; empty for a dangling link."""
    try:
        return _read(path)
    except FileNotFoundError:
        return b""


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
