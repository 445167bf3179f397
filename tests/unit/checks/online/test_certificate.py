import pytest

from qrmi_slurm.checks.online import certificate


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x03\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff", bytes(100)])
def test_what_is_no_certificate(der):
    """Bytes that are no certificate are a ValueError, whatever they are."""
    with pytest.raises(ValueError, match="not a certificate"):
        certificate.read(der)
