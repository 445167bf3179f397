"""AWS Signature Version 4 for S3: in a request's headers, and in URLs that others may use for a while.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlsplit

from qrmi_slurm.broker.spec import Bucket

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"

# S3's own limit for the life of a presigned URL.
MAX_PRESIGNED_S: Final = 7 * 24 * 3600


def object_target(endpoint: str, bucket: str, name: str) -> str:
    """Return an object's path at S3, with the bucket in it, as QRMI spells it."""
    return f"{urlsplit(endpoint).path.rstrip('/')}/{quote(bucket, safe='')}/{quote(name, safe='/-_.~')}"


def signed_headers(
    bucket: Bucket, method: str, target: str, headers: Mapping[str, str], payload: str, now_s: float
) -> dict[str, str]:
    """Return the headers with their signature; Host is signed, but not among them.

    Args:
        bucket: the bucket, whose key signs and whose endpoint is asked.
        method: GET, PUT, ...
        target: the path, percent-encoded; no query.
        headers: the headers to sign, their names in lower case.
        payload: the body's SHA-256 in hexadecimal, or one of S3's replacements for it.
        now_s: seconds since the epoch.
    """
    moment = _moment(now_s)
    signed = {**headers, "x-amz-date": moment, "x-amz-content-sha256": payload}
    with_host = {**signed, "host": urlsplit(bucket.endpoint).netloc}
    names, signature = _sign(bucket, method, target, "", with_host, payload, moment)
    authorization = f"{ALGORITHM} Credential={_credential(bucket, moment)},SignedHeaders={names},Signature={signature}"
    return {**signed, "authorization": authorization}


def presigned_url(bucket: Bucket, method: str, name: str, life_s: int, now_s: float) -> str:
    """Return a URL with which the service may read or write one object.

    Args:
        bucket: the bucket, whose key signs; the URL is for S3 as the service sees it.
        method: GET or PUT.
        name: the object's name.
        life_s: how long the URL works, in seconds; a week at most.
        now_s: seconds since the epoch.
    """
    moment = _moment(now_s)
    parts = urlsplit(bucket.service_endpoint)
    target = object_target(bucket.service_endpoint, bucket.name, name)
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": _credential(bucket, moment),
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(max(1, min(life_s, MAX_PRESIGNED_S))),
        "X-Amz-SignedHeaders": "host",
    }
    text = "&".join(f"{key}={quote(value, safe='-_.~')}" for key, value in sorted(query.items()))
    _, signature = _sign(bucket, method, target, text, {"host": parts.netloc}, UNSIGNED, moment)
    return f"{parts.scheme}://{parts.netloc}{target}?{text}&X-Amz-Signature={signature}"


def _moment(now_s: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))


def _scope(bucket: Bucket, moment: str) -> str:
    return f"{moment[:8]}/{bucket.region}/s3/aws4_request"


def _credential(bucket: Bucket, moment: str) -> str:
    return f"{bucket.key_id.reveal()}/{_scope(bucket, moment)}"


def _sign(
    bucket: Bucket, method: str, target: str, query: str, headers: Mapping[str, str], payload: str, moment: str
) -> tuple[str, str]:
    """Return the names of the signed headers and the signature."""
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers))
    canonical = "\n".join([method, target, query, lines, names, payload])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join([ALGORITHM, moment, _scope(bucket, moment), digest])
    key = f"AWS4{bucket.secret.reveal()}".encode()
    for part in (moment[:8], bucket.region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return names, hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
