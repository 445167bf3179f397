"""The service check: does each endpoint of a resource answer, and is the credential accepted, asked with requests."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import requests

from qrmi_slurm.calls import probe
from qrmi_slurm.checks.online.bounded import within
from qrmi_slurm.checks.online.hop import PROXY_HINT
from qrmi_slurm.checks.online.targets import Target
from qrmi_slurm.checks.result import Level, Line, error, ok, warning
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

_APIKEY_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"  # https://cloud.ibm.com/apidocs/iam-identity-token-api
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_WORDS_CHARS: Final = 200

# What proxies put into an answer of their own (Squid, Zscaler and others).
_PROXY_HEADERS: Final = ("X-Squid-Error", "Proxy-Authenticate", "Proxy-Connection")


def lines(
    resource: Resource, targets: Mapping[str, Target], hops: Mapping[str, list[Line]], step_timeout_s: float
) -> list[Line]:
    """Return the way to each address of a resource, then what came of its credentials.

    Args:
        resource: of the config.
        targets: where its requests go, by variable.
        hops: what was seen on the way there, by `Target.hop`.
        step_timeout_s: how long each request may take, in seconds.
    """
    return _Requests(resource, targets, hops, step_timeout_s).lines()


@dataclass(frozen=True, slots=True)
class _Answer:
    """A service's answer, or that of something in between.

    Args:
        status: HTTP's.
        words: its reason phrase, or what its JSON says.
        document: its JSON; None where it is none.
        is_proxys: whether a proxy gave it.
    """

    status: int
    words: str = field(repr=False)
    document: Any = field(repr=False)
    is_proxys: bool


class _Requests:
    """The requests for one resource: does each endpoint answer, and is the credential accepted?"""

    def __init__(
        self,
        resource: Resource,
        targets: Mapping[str, Target],
        hops: Mapping[str, list[Line]],
        timeout_s: float,
    ) -> None:
        self._resource = resource
        self._targets = targets
        self._hops = hops
        self._timeout_s = timeout_s
        self._known = describe(resource.type)
        self._variables = resource.variables

    def lines(self) -> list[Line]:
        """Return the way to each address, then what came of the credentials."""
        lines: list[Line] = []
        reached = True
        shown: set[str] = set()
        for target in self._targets.values():
            hop = self._hops[target.hop]
            if target.hop not in shown:
                lines += hop
                shown.add(target.hop)
            if any(line.level is Level.ERROR for line in hop):
                reached = False
                continue
            if hop[-1].name == "proxy" and hop[-1].level is Level.WARNING and target.proxy:
                continue  # a proxy that only QRMI can speak to
            endpoint = self._timed("endpoint", partial(self._endpoint, target))
            lines.append(endpoint)
            reached &= endpoint.level is not Level.ERROR
        if reached and self._targets:
            lines += self._credential()
        return lines

    def _timed(self, name: str, work: Callable[[], Line]) -> Line:
        began_s = time.monotonic()
        try:
            line = within(self._timeout_s, work)
        except (TimeoutError, requests.exceptions.Timeout):
            message = f"no answer within {self._timeout_s:g} s"
            line = error(name, message, "the address is reached and the service is silent: is it down?")
        except requests.exceptions.RequestException as failure:
            # Its text repeats the URL and the library's inner parts; its kind says enough.
            message = f"the request failed: {type(failure).__name__}"
            line = error(
                name, message, "the address is reached and what answers there does not speak HTTP as it should"
            )
        return replace(line, duration_s=time.monotonic() - began_s)

    def _request(self, target: Target, method: str, path: str = "", **what: Any) -> _Answer:
        with requests.Session() as session:
            session.trust_env = False
            proxy = {"http": target.proxy, "https": target.proxy} if target.proxy else {}
            with session.request(
                method,
                target.url.rstrip("/") + path,
                timeout=self._timeout_s,
                proxies=proxy,
                verify=target.trust or True,
                allow_redirects=False,
                stream=True,
                **what,
            ) as response:
                content = response.raw.read(_MAX_ANSWER_BYTES, decode_content=True) or b""
                return _answer(response, content, target)

    def _endpoint(self, target: Target) -> Line:
        answer = self._request(target, "GET")
        status = f"{answer.status} {answer.words}".strip()
        if answer.is_proxys:
            return error("endpoint", f"{status} from the proxy for {target.host}", PROXY_HINT)
        if answer.status >= 500:
            return error("endpoint", f"{target.host} answers {status}", "the service is there and out of order")
        if answer.status in (301, 302, 307, 308):
            return warning(
                "endpoint", f"{target.host} answers {status}", "is the address complete? It points elsewhere"
            )
        return ok("endpoint", f"{target.host} answers ({answer.status})")

    def _credential(self) -> list[Line]:
        if probe.missing_variables(self._resource):
            return []
        prefix = self._known.prefix
        if f"{prefix}IAM_APIKEY" in self._known.secrets:
            return self._ibm("QRMI_IBM_QCS_" if self._known.locks else "QRMI_IBM_QS_")
        if self._known.name == "iqm-server":
            name = self._resource.name
            alias = ":".join(name.rsplit("_", 1)) if "_" in name else name  # as QRMI does (iqm/server.rs)
            bearer = {"Authorization": f"Bearer {self._variables['QRMI_IQM_ISA_TOKEN']}"}
            return [self._asked("QRMI_IQM_ISA_ENDPOINT", f"/api/v1/quantum-computers/{alias}", bearer, "token")]
        if self._known.name == "alice-bob-felis":
            basic = {"Authorization": f"Basic {self._variables['QRMI_AB_FELIS_API_KEY']}"}
            return [self._asked("QRMI_AB_FELIS_BASE_ENDPOINT", "/v1/targets/", basic, "key")]
        return []

    def _ibm(self, prefix: str) -> list[Line]:
        tokens: list[str] = []
        first = self._timed("credential", lambda: self._iam(prefix, tokens))
        if not tokens:
            return [first]
        # The two services differ in where their pages are (quantum_compute_client, quantum_system_client).
        path = f"/backends/{self._resource.name}/status" if "QCS" in prefix else f"/v1/backends/{self._resource.name}"
        headers = {"Authorization": f"Bearer {tokens[0]}", "Service-CRN": self._variables[f"{prefix}SERVICE_CRN"]}
        second = self._asked(f"{prefix}ENDPOINT", path, headers, "token", crn=f"{prefix}SERVICE_CRN")
        return [first, replace(second, message=mask(second.message, [Secret(tokens[0])]))]

    def _iam(self, prefix: str, tokens: list[str]) -> Line:
        target = self._target(f"{prefix}IAM_ENDPOINT")
        form = {"grant_type": _APIKEY_GRANT, "apikey": self._variables[f"{prefix}IAM_APIKEY"]}
        answer = self._request(target, "POST", "/identity/token", data=form, headers={"Accept": "application/json"})
        status = f"{answer.status} {answer.words}".strip()
        if answer.is_proxys:
            return error("credential", f"{status} from the proxy, not from IAM", PROXY_HINT)
        token = answer.document.get("access_token") if isinstance(answer.document, dict) else None
        if answer.status == 200 and isinstance(token, str) and token:
            tokens.append(token)
            return ok("credential", "IAM gives a token for the key")
        if 400 <= answer.status < 500 and isinstance(answer.document, dict):
            hint = f"write a key that exists into {prefix}IAM_APIKEY; it may have been deleted, or be of another cloud"
            return error("credential", f"IAM rejects the key: {status}", hint)
        hint = f"does {prefix}IAM_ENDPOINT name IAM (https://iam.cloud.ibm.com)?"
        return error("credential", f"what answers for IAM gives no token: {status}", hint)

    def _asked(self, variable: str, path: str, headers: Mapping[str, str], what: str, crn: str = "") -> Line:
        name = "account" if crn else "credential"
        return self._timed(name, lambda: self._ask(name, variable, path, headers, what, crn))

    def _ask(self, name: str, variable: str, path: str, headers: Mapping[str, str], what: str, crn: str) -> Line:
        target = self._target(variable)
        answer = self._request(target, "GET", path, headers={**headers, "Accept": "application/json"})
        status = f"{answer.status} {answer.words}".strip()
        if answer.is_proxys:
            return error(name, f"{status} from the proxy, not from {target.host}", PROXY_HINT)
        if answer.status in (401, 403):
            hint = f"does {crn} belong to the key's account, and may the key use it?" if crn else "write a valid one"
            return error(name, f"{target.host} rejects the {what}: {status}", hint)
        if answer.status == 404:
            hint = f"is the resource called as there, and does {variable} have the right path?"
            return error(name, f"{target.host} has no {printable(self._resource.name)}: {status}", hint)
        if answer.status >= 400 or answer.document is None:
            return error(name, f"{target.host} answers {status}", f"is {variable} the service's API?")
        return ok(name, f"{target.host} accepts the {what}")

    def _target(self, variable: str) -> Target:
        """Return the target of a variable; two variables of one value share it."""
        value = self._variables[variable].strip()
        return next(target for target in self._targets.values() if target.url == value)


def _answer(response: requests.Response, content: bytes, target: Target) -> _Answer:
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    words = response.reason or ""
    if isinstance(document, dict):
        words = _words_of(document) or words
    is_proxys = response.status_code == 407 or (
        # Over a tunnel nobody in between can answer; without TLS the proxy can, and does so with a page of its own.
        target.proxy is not None
        and not target.is_tls
        and response.status_code >= 400
        and (document is None or any(name in response.headers for name in _PROXY_HEADERS))
    )
    return _Answer(response.status_code, printable(str(words), _MAX_WORDS_CHARS), document, is_proxys)


def _words_of(document: Mapping[str, Any]) -> str:
    """Return what an error's JSON says: IAM's errorCode and errorMessage, or the first of the service's errors."""
    if "errorMessage" in document:
        return f"{document['errorMessage']} ({document.get('errorCode', 'no code')})"
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    return str(first["message"]) if isinstance(first, dict) and "message" in first else ""
