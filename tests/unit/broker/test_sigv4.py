"""Signatures for S3, against Amazon's own examples.

docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from qrmi_slurm.broker import sigv4
from qrmi_slurm.broker.spec import Bucket
from qrmi_slurm.secret import Secret

EXAMPLE = Bucket(
    "https://examplebucket.s3.amazonaws.com",
    "https://examplebucket.s3.amazonaws.com",
    "",
    "us-east-1",
    Secret("AKIAIOSFODNN7EXAMPLE"),
    Secret("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    "",
)
MOMENT_S = 1369353600  # 2013-05-24T00:00:00Z
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_request_is_signed_as_in_amazons_example():
    signed = sigv4.signed_headers(EXAMPLE, "GET", "/test.txt", {"range": "bytes=0-9"}, EMPTY, MOMENT_S)
    assert signed["authorization"].endswith("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_a_url_is_signed_as_in_amazons_example(monkeypatch):
    monkeypatch.setattr(sigv4, "object_target", lambda *_: "/test.txt")
    url = sigv4.presigned_url(EXAMPLE, "GET", "test.txt", 86400, MOMENT_S)
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


def test_a_url_works_no_longer_than_s3_allows():
    assert "X-Amz-Expires=604800&" in sigv4.presigned_url(EXAMPLE, "GET", "x", 2**31 - 1, MOMENT_S)
