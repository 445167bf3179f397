"""The certificate authorities that QRMI reads: never others than it would find by itself."""

import os
import stat

import pytest

from qrmi_slurm.calls import ca_bundle

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
# They need not be real, as only text is compared.
CERTIFICATES = [f"{BEGIN}\nMIIB{name * 60}\n{name * 11}=\n{END}\n" for name in "abc"]
OTHER = f"{BEGIN}\nMIIBother\n{END}\n"


@pytest.fixture
def folder(tmp_path):
    """A folder as update-ca-certificates makes it: links, links by hash to these, and one bundle of all."""
    made, elsewhere = tmp_path / "certs", tmp_path / "share"
    made.mkdir()
    elsewhere.mkdir()
    for number, text in enumerate(CERTIFICATES):
        (elsewhere / f"{number}.crt").write_text(text)
        (made / f"{number}.pem").symlink_to(elsewhere / f"{number}.crt")
        (made / f"0000000{number}.0").symlink_to(f"{number}.pem")
    (made / "ca-certificates.crt").write_text("".join(CERTIFICATES))
    return made


def link_to_another(folder):
    (folder.parent / "share" / "lab.crt").write_text(OTHER)
    (folder / "0123abcd.0").symlink_to(folder.parent / "share" / "lab.crt")


def link_to_elsewhere(folder):
    """A certificate that the bundle has too, but in a place that may hang."""
    (folder.parent / "lab.crt").write_text(CERTIFICATES[0])
    (folder / "0123abcd.0").symlink_to(folder.parent / "lab.crt")


def link_around(folder):
    (folder.parent / "lab.crt").write_text(CERTIFICATES[0])
    (folder / "0123abcd.0").symlink_to(folder.parent / "share" / ".." / "lab.crt")


def link_to_a_link(folder):
    link_to_elsewhere(folder)
    (folder / "0123abcd.0").unlink()
    (folder.parent / "share" / "lab.crt").symlink_to(folder.parent / "lab.crt")
    (folder / "0123abcd.0").symlink_to(folder.parent / "share" / "lab.crt")


def variables(folder):
    bundle, other, share = folder / "ca-certificates.crt", folder.parent / "other", folder.parent / "share"
    note = folder.parent / "note"
    return ca_bundle.variables(str(bundle), str(folder), (str(other),), (f"{share}/",), note)


def bundle_alone(folder):
    return {"SSL_CERT_FILE": str(folder / "ca-certificates.crt"), "SSL_CERT_DIR": "/dev/null"}


def test_a_complete_bundle_is_all_that_qrmi_reads(folder):
    assert variables(folder) == bundle_alone(folder)


@pytest.mark.parametrize(
    "add",
    [
        lambda folder: (folder / "README").write_text("no certificate\n"),
        lambda folder: (folder / "again.pem").write_text(CERTIFICATES[0] + CERTIFICATES[2]),
        lambda folder: (folder / "java").mkdir(),
        lambda folder: (folder / "gone.pem").symlink_to(folder.parent / "share" / "gone"),
        lambda folder: (folder / "gone.0").symlink_to("gone"),
        lambda folder: os.mkfifo(folder / "pipe.pem"),
    ],
)
def test_entries_without_new_certificates_change_nothing(folder, add):
    add(folder)
    assert variables(folder) == bundle_alone(folder)


@pytest.mark.parametrize(
    "add",
    [
        lambda folder: (folder / "lab.pem").write_text(OTHER),
        lambda folder: (folder / "lab").write_text("# the lab's\n" + CERTIFICATES[0] + OTHER),
        lambda folder: (folder / "0123abcd.0").write_text(OTHER),
        link_to_another,
        lambda folder: (folder / "lab.pem").write_text(OTHER.replace("CERTIFICATE", "TRUSTED CERTIFICATE")),
        lambda folder: (folder / "lab.pem").write_text(CERTIFICATES[0].replace("MIIB", "MIIC")),
        # The same certificate, written differently: parsing it would cost more than it saves.
        lambda folder: (folder / "again.pem").write_bytes(CERTIFICATES[1].replace("\n", "\r\n").encode()),
    ],
)
def test_an_authority_that_only_the_folder_has_stays_trusted(folder, add):
    """An admin may add one by hand, with or without a name by hash."""
    add(folder)
    assert variables(folder) == {}


def test_without_a_bundle_or_a_folder_qrmi_looks_for_itself(folder, tmp_path):
    bundle, note = folder / "ca-certificates.crt", tmp_path / "note"
    assert ca_bundle.variables(str(bundle), str(tmp_path / "none"), note=note) == {}
    assert ca_bundle.variables(str(tmp_path / "none"), str(folder), note=note) == {}
    bundle.write_text("")
    assert variables(folder) == {}


def test_a_name_with_a_line_end_is_left_to_qrmi(folder):
    (folder / "a\nb.pem").write_text(CERTIFICATES[0])
    assert variables(folder) == {}


def test_an_unreadable_entry_is_left_to_qrmi(folder):
    (folder / "loop.pem").symlink_to(folder / "loop.pem")
    assert variables(folder) == {}


def test_if_another_folder_exists_qrmi_looks_for_itself(folder):
    (folder.parent / "other").mkdir()
    assert variables(folder) == {}


@pytest.mark.parametrize(
    "content",
    [
        CERTIFICATES[0] + CERTIFICATES[1].rstrip() + CERTIFICATES[2],
        f"{BEGIN}\nMIIBunfinished\n" + "".join(CERTIFICATES),
        "# off " + "".join(CERTIFICATES),
        "".join(CERTIFICATES) + "x" * 2_000_000,
    ],
)
def test_a_bundle_that_is_not_simple_is_left_to_qrmi(folder, content):
    """A PEM parser may read it differently from a search for markers."""
    (folder / "ca-certificates.crt").write_text(content)
    assert variables(folder) == {}


def test_a_bundle_that_a_jobs_user_cannot_read_is_left_to_qrmi(folder):
    (folder / "ca-certificates.crt").chmod(0o600)
    assert variables(folder) == {}


@pytest.mark.parametrize("add", [link_to_elsewhere, link_around, link_to_a_link])
def test_a_link_to_a_place_that_may_hang_is_left_to_qrmi(folder, add):
    """QRMI follows it in a process that has a deadline; this one has none."""
    add(folder)
    assert variables(folder) == {}


def test_a_device_is_not_read(folder):
    os.mknod(folder / "zero.pem", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    assert variables(folder) == bundle_alone(folder)


# --- the note of what was compared ------------------------------------------------------------------------------


@pytest.fixture
def compared(folder, monkeypatch):
    """A folder that was compared with its bundle, and whose files have not changed for long."""
    monkeypatch.setattr(ca_bundle, "_SETTLED_NS", 0)
    assert variables(folder) == bundle_alone(folder)
    return folder


def reads_of(folder, monkeypatch):
    """Return the result, and the certificates' files that it took to find it."""
    read = []
    original = ca_bundle._read
    monkeypatch.setattr(ca_bundle, "_read", lambda path: read.append(path) or original(path))
    return variables(folder), read


def test_what_was_compared_is_not_read_again(compared, monkeypatch):
    assert reads_of(compared, monkeypatch) == (bundle_alone(compared), [])
    assert (compared.parent / "note").stat().st_mode & 0o777 == 0o600


def edit_a_certificate(folder):
    """In place, with the size and the time that it had."""
    path = folder.parent / "share" / "0.crt"
    times = path.stat()
    with path.open("r+") as file:
        file.write(CERTIFICATES[0].replace("MIIB", "MIIC"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def lead_a_link_elsewhere(folder):
    (folder.parent / "share" / "lab.crt").write_text(OTHER)
    (folder / "0.pem").unlink()
    (folder / "0.pem").symlink_to(folder.parent / "share" / "lab.crt")


def make_a_dangling_link_lead_somewhere(folder):
    (folder.parent / "share" / "gone").write_text(OTHER)


@pytest.mark.parametrize(
    "change",
    [
        edit_a_certificate,
        lead_a_link_elsewhere,
        make_a_dangling_link_lead_somewhere,
        link_to_another,
        lambda folder: (folder / "lab.pem").write_text(OTHER),
        lambda folder: (folder / "ca-certificates.crt").write_text(CERTIFICATES[0]),
        lambda folder: (folder / "ca-certificates.crt").chmod(0o600),
        lambda folder: (folder.parent / "other").mkdir(),
    ],
)
def test_a_change_is_seen_in_spite_of_the_note(folder, monkeypatch, change):
    monkeypatch.setattr(ca_bundle, "_SETTLED_NS", 0)
    (folder / "gone.pem").symlink_to(folder.parent / "share" / "gone")
    assert variables(folder) == bundle_alone(folder)
    change(folder)
    assert variables(folder) == {}


def test_files_that_changed_just_now_are_not_noted(folder):
    """The next change could have the same time."""
    assert variables(folder) == bundle_alone(folder)
    assert not (folder.parent / "note").exists()


@pytest.mark.parametrize("text", ["", "\n", "0 \n0 ", "x", "0 /none\n0 /none"])
def test_a_note_that_makes_no_sense_is_written_anew(compared, monkeypatch, text):
    note = compared.parent / "note"
    good = note.read_text()
    note.write_text(text)
    result, read = reads_of(compared, monkeypatch)
    assert result == bundle_alone(compared)
    assert read
    assert note.read_text() == good


def test_a_note_about_other_files_does_not_count(compared, monkeypatch):
    note = compared.parent / "note"
    note.write_text("\n".join(note.read_text().split("\n")[2:]))
    assert reads_of(compared, monkeypatch)[1]


def test_where_no_note_can_be_written_the_result_is_the_same(folder, monkeypatch):
    monkeypatch.setattr(ca_bundle, "_SETTLED_NS", 0)
    (folder.parent / "note").mkdir()
    assert variables(folder) == bundle_alone(folder)
