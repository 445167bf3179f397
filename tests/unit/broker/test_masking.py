"""Masking secrets in what a service answers."""

from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.broker.masking import Masker
from qrmi_slurm.secret import Secret


@given(st.lists(st.sampled_from([b"real", b"-token", b"x", b"re", b"al-tok", b"en", b"secret"]), max_size=20))
def test_no_secret_gets_through_in_pieces(pieces):
    """It is masked wherever the text is cut; everything else comes through, and the length stays."""
    secrets = [Secret("real-token"), Secret("secret"), Secret("x")]  # one too short to mask
    masker = Masker(secrets)
    got = b"".join(masker.feed(piece) for piece in pieces) + masker.rest()
    whole = b"".join(pieces)
    assert got == whole.replace(b"real-token", b"*" * 10).replace(b"secret", b"*" * 6)
