"""A stand-in for an IBM Quantum System and its S3: it stores objects and checks every signature with the site's key.

A program that prints its port. QRMI's own requests, signed by the AWS library, show that its check is right.
`/requests` lists each request with its headers and body, `/objects` the contents of S3, and `/run/<job>` runs a job:
the service fetches its input and stores results and logs at the URLs it was given.
"""

import hashlib
import hmac
import http.server
import json
import sys
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

KEY_ID = "site-access-key-id"
SECRET = "site-secret-access-key"
REGION = "eu-test-1"
BUCKET = "site-bucket"
API_KEY = "site-iam-apikey"
TOKEN = "site-iam-token-of-the-system"
NAME = "ibm_system"

REQUESTS: list[dict[str, Any]] = []
OBJECTS: dict[str, bytes] = {}
# A job of somebody else, which must stay invisible.
CREATED = "2026-01-01T00:00:00.000Z"
ANOTHERS = "job-of-another"
JOBS: dict[str, dict[str, Any]] = {
    ANOTHERS: {
        "id": ANOTHERS,
        "backend": NAME,
        "status": "Running",
        "created_time": CREATED,
        "program_id": "sampler",
        "storage": {},
    }
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, _, query = self.path.partition("?")
        if path == "/requests":
            return self._answer(200, json.dumps(REQUESTS).encode())
        if path == "/objects":
            return self._answer(200, json.dumps({name: text.decode() for name, text in OBJECTS.items()}).encode())
        if path.startswith("/run/"):
            return self._run(path.removeprefix("/run/"))
        REQUESTS.append(
            {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body.decode()}
        )
        if path == "/identity/token":
            if dict(parse_qsl(body.decode())).get("apikey") != API_KEY:
                return self._answer(400, b'{"errorCode": "BXNIM0415E", "errorMessage": "no such key"}')
            token = {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600, "expiration": 9_999_999_999}
            return self._answer(200, json.dumps(token).encode())
        if path.startswith(f"/{BUCKET}/"):
            return self._s3(path, query, body)
        if self.headers.get("authorization") != f"Bearer {TOKEN}" or self.headers.get("service-crn") != "crn:v1:test":
            return self._answer(401, b'{"errors": [], "status_code": 401, "trace": ""}')
        return self._api(path, body)

    do_POST = do_PUT = do_DELETE = do_GET

    def _api(self, path: str, body: bytes) -> None:
        _, _, kind, *rest = path.split("/")
        if kind == "backends" and rest[:1] == [NAME]:
            lanes = {"hpc_workload_manager": {"lanes": 5}, "ibm_quantum_compute": {"lanes": 1}}
            what = {"name": NAME, "status": "online", "version": "1", "locked": False}
            return self._answer(200, json.dumps(lanes if rest[1:] == ["lanes"] else what).encode())
        if kind == "jobs" and not rest and self.command == "POST":
            job = json.loads(body)
            if job["id"] in JOBS:
                return self._answer(409, b'{"errors": [], "status_code": 409, "trace": ""}')
            JOBS[job["id"]] = {**job, "status": "Running", "created_time": CREATED}
            return self._answer(204, b"")
        if kind == "jobs" and not rest:
            return self._answer(200, json.dumps({"jobs": list(JOBS.values())}).encode())
        if kind == "jobs" and rest[0] in JOBS:
            if self.command == "DELETE":
                del JOBS[rest[0]]
            if self.command == "GET":
                return self._answer(200, json.dumps(JOBS[rest[0]]).encode())
            return self._answer(204, b"")
        return self._answer(404, b'{"errors": [], "status_code": 404, "trace": ""}')

    def _run(self, job: str) -> None:
        storage = JOBS[job]["storage"]
        try:
            with urllib.request.urlopen(storage["input"]["presigned_url"], timeout=10) as answer:
                given = answer.read()
            for kind, text in (("results", b'{"ran": ' + given + b"}"), ("logs", b"it ran")):
                url = storage[kind]["presigned_url"]
                urllib.request.urlopen(urllib.request.Request(url, text, method="PUT"), timeout=10).close()
        except urllib.error.HTTPError as error:
            return self._answer(500, error.read())
        JOBS[job]["status"] = "Completed"
        return self._answer(200, b"")

    def _s3(self, path: str, query: str, body: bytes) -> None:
        if fault := self._fault(path, query, body):
            return self._answer(403, f"<Error><Code>{fault}</Code></Error>".encode(), "application/xml")
        name = path.removeprefix(f"/{BUCKET}/")
        if self.command == "PUT":
            OBJECTS[name] = body
            return self._answer(200, b"")
        if name not in OBJECTS:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        return self._answer(200, OBJECTS[name], "application/octet-stream")

    def _fault(self, path: str, query: str, body: bytes) -> str:
        """Check a signature as S3 does; empty if it is right."""
        pairs = dict(parse_qsl(query, keep_blank_values=True))
        if "X-Amz-Signature" in pairs:
            given = pairs.pop("X-Amz-Signature")
            payload, moment, names = "UNSIGNED-PAYLOAD", pairs["X-Amz-Date"], pairs["X-Amz-SignedHeaders"]
            credential = pairs["X-Amz-Credential"]
            began = datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            if datetime.now(UTC) > began + timedelta(seconds=int(pairs["X-Amz-Expires"])):
                return "ExpiredToken"
        else:
            words = self.headers.get("authorization", "").removeprefix("AWS4-HMAC-SHA256").split(",")
            parts = dict(word.strip().split("=", 1) for word in words if "=" in word)
            if set(parts) != {"Credential", "SignedHeaders", "Signature"}:
                return "AccessDenied"
            given, names, credential = parts["Signature"], parts["SignedHeaders"], parts["Credential"]
            payload, moment = self.headers["x-amz-content-sha256"], self.headers["x-amz-date"]
            if payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(body).hexdigest():
                return "XAmzContentSHA256Mismatch"
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        if credential != f"{KEY_ID}/{scope}":
            return "InvalidAccessKeyId"
        canonical_query = "&".join(f"{quote(k, safe='')}={quote(v, safe='-_.~')}" for k, v in sorted(pairs.items()))
        lines = "".join(f"{name}:{' '.join((self.headers[name] or '').split())}\n" for name in names.split(";"))
        canonical = f"{self.command}\n{path}\n{canonical_query}\n{lines}\n{names}\n{payload}"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4" + SECRET.encode()
        for word in scope.split("/"):
            key = hmac.new(key, word.encode(), "sha256").digest()
        return "" if hmac.new(key, text.encode(), "sha256").hexdigest() == given else "SignatureDoesNotMatch"

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        if status != 204:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def variables(url: str) -> dict[str, str]:
    """Return the variables for the config's `environment`."""
    return {
        "QRMI_IBM_QS_ENDPOINT": url,
        "QRMI_IBM_QS_IAM_ENDPOINT": url,
        "QRMI_IBM_QS_IAM_APIKEY": API_KEY,
        "QRMI_IBM_QS_SERVICE_CRN": "crn:v1:test",
        "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": KEY_ID,
        "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY": SECRET,
        "QRMI_IBM_QS_S3_ENDPOINT": url,
        "QRMI_IBM_QS_S3_BUCKET": BUCKET,
        "QRMI_IBM_QS_S3_REGION": REGION,
    }


def place_of(url: str) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
