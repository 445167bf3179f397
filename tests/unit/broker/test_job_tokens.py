"""The tokens that a broker issues for its job's key."""

from qrmi_slurm.broker import job_tokens
from qrmi_slurm.secret import Secret


def test_a_token_expires_and_cannot_be_forged():
    key, now_s = Secret("key-of-the-job"), 1000.0
    token = job_tokens.issue(key, now_s)
    assert job_tokens.is_good(token, key, now_s + 3599)
    assert not job_tokens.is_good(token, key, now_s + 3601)
    assert not job_tokens.is_good(token, Secret("another"), now_s)
    mark, expires, proof = token.split(".")
    for forged in (
        f"{mark}.{int(expires) + 1}.{proof}",
        f"{mark}.{expires}.",
        f"{mark}..{proof}",
        f"{mark}.-1.{proof}",
        "\xff",
    ):
        assert not job_tokens.is_good(forged, key, now_s)
