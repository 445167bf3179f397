"""The service check: whether each endpoint of a resource answers, and whether the service accepts the credential."""

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
from qrmi_slurm.checks.result import Level, Result, error, ok, warning
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

_APIKEY_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"  # https://cloud.ibm.com/apidocs/iam-identity-token-api
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_WORDS_CHARS: Final = 200

# Headers of responses that a proxy itself made (Squid, Zscaler and others).
_PROXY_HEADERS: Final = ("X-Squid-Error", "Proxy-Authenticate", "Proxy-Connection")


def run(
    resource: Resource, targets: Mapping[str, Target], hops: Mapping[str, list[Result]], step_timeout_s: float
) -> list[Result]:
    """Return the steps to each address of a resource, then those that try its credentials.

    Args:
        resource: one of the config.
        targets: where its requests go, by variable.
        hops: the steps of each connection, by `Target.hop`.
        step_timeout_s: how long each request may take, in seconds.
    """
    return _Requests(resource, targets, hops, step_timeout_s).steps()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to a request, from the service or from a proxy in between.

    Args:
        status: the HTTP status.
        words: its reason phrase, or the error in its JSON.
        document: its JSON; None if it is something else.
        is_proxys: whether a proxy gave it.
    """

    status: int
    words: str = field(repr=False)
    document: Any = field(repr=False)
    is_proxys: bool

    @property
    def shown(self) -> str:
        """Status and words."""
        return f"{self.status} {self.words}".strip()


@dataclass(frozen=True, slots=True)
class _Login:
    """A request that shows whether the service accepts a credential.

    Args:
        variable: the variable with the address.
        path: what to append to the address.
        headers: those with the credential.
        credential: what the credential is, for messages.
        crn: the variable with the CRN that the request is for; empty if the service has none.
    """

    variable: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    credential: str
    crn: str = ""


class _Requests:
    """The requests for one resource."""

    def __init__(
        self,
        resource: Resource,
        targets: Mapping[str, Target],
        hops: Mapping[str, list[Result]],
        timeout_s: float,
    ) -> None:
        self._resource = resource
        self._targets = targets
        self._hops = hops
        self._timeout_s = timeout_s
        self._known = describe(resource.type)
        self._variables = resource.variables

    def steps(self) -> list[Result]:
        """Return the steps to each address, then those that try the credentials."""
        steps: list[Result] = []
        reached = True
        shown: set[str] = set()
        for target in self._targets.values():
            hop = self._hops[target.hop]
            if target.hop not in shown:
                steps += hop
                shown.add(target.hop)
            if any(step.level is Level.ERROR for step in hop):
                reached = False
                continue
            if hop[-1].name == "proxy" and hop[-1].level is Level.WARNING and target.proxy:
                continue  # a proxy that only QRMI can use
            endpoint = self._timed("endpoint", partial(self._endpoint, target))
            steps.append(endpoint)
            reached &= endpoint.level is not Level.ERROR
        if reached and self._targets:
            steps += self._credential()
        return steps

    def _timed(self, name: str, work: Callable[[], Result]) -> Result:
        began_s = time.monotonic()
        try:
            step = within(self._timeout_s, work)
        except (TimeoutError, requests.exceptions.Timeout):
            hint = "the address is reachable, but the service does not answer; it may be down"
            step = error(name, f"no answer within {self._timeout_s:g} s", hint)
        except requests.exceptions.RequestException as failure:
            # Its text repeats the URL and the library's internals; its type says enough.
            message = f"the request failed: {type(failure).__name__}"
            step = error(name, message, "the address is reachable, but what answers there does not speak proper HTTP")
        return replace(step, duration_s=time.monotonic() - began_s)

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

    def _endpoint(self, target: Target) -> Result:
        answer = self._request(target, "GET")
        if answer.is_proxys:
            return error("endpoint", f"{answer.shown} from the proxy for {target.host}", PROXY_HINT)
        if answer.status >= 500:
            return error(
                "endpoint", f"{target.host} answers {answer.shown}", "the service is reachable but out of order"
            )
        if answer.status in (301, 302, 307, 308):
            hint = "it redirects elsewhere: check that the address is complete"
            return warning("endpoint", f"{target.host} answers {answer.shown}", hint)
        return ok("endpoint", f"{target.host} answers ({answer.status})")

    def _credential(self) -> list[Result]:
        if probe.missing_variables(self._resource):
            return []
        prefix = self._known.prefix
        if f"{prefix}IAM_APIKEY" in self._known.secrets:
            return self._ibm("QRMI_IBM_QCS_" if self._known.locks else "QRMI_IBM_QS_")
        if self._known.name == "iqm-server":
            name = self._resource.name
            alias = ":".join(name.rsplit("_", 1)) if "_" in name else name  # as QRMI does (iqm/server.rs)
            bearer = {"Authorization": f"Bearer {self._variables['QRMI_IQM_ISA_TOKEN']}"}
            path = f"/api/v1/quantum-computers/{alias}"
            return [self._try_login(_Login("QRMI_IQM_ISA_ENDPOINT", path, bearer, "token"))]
        if self._known.name == "alice-bob-felis":
            basic = {"Authorization": f"Basic {self._variables['QRMI_AB_FELIS_API_KEY']}"}
            return [self._try_login(_Login("QRMI_AB_FELIS_BASE_ENDPOINT", "/v1/targets/", basic, "key"))]
        return []

    def _ibm(self, prefix: str) -> list[Result]:
        tokens: list[str] = []
        first = self._timed("credential", lambda: self._iam(prefix, tokens))
        if not tokens:
            return [first]
        # The paths of the two services differ (quantum_compute_client, quantum_system_client).
        path = f"/backends/{self._resource.name}/status" if "QCS" in prefix else f"/v1/backends/{self._resource.name}"
        headers = {"Authorization": f"Bearer {tokens[0]}", "Service-CRN": self._variables[f"{prefix}SERVICE_CRN"]}
        second = self._try_login(_Login(f"{prefix}ENDPOINT", path, headers, "token", crn=f"{prefix}SERVICE_CRN"))
        return [first, replace(second, message=mask(second.message, [Secret(tokens[0])]))]

    def _iam(self, prefix: str, tokens: list[str]) -> Result:
        """Exchange the key for a token, which is added to `tokens`."""
        target = self._target(f"{prefix}IAM_ENDPOINT")
        form = {"grant_type": _APIKEY_GRANT, "apikey": self._variables[f"{prefix}IAM_APIKEY"]}
        answer = self._request(target, "POST", "/identity/token", data=form, headers={"Accept": "application/json"})
        if answer.is_proxys:
            return error("credential", f"{answer.shown} from the proxy, not from IAM", PROXY_HINT)
        token = answer.document.get("access_token") if isinstance(answer.document, dict) else None
        if answer.status == 200 and isinstance(token, str) and token:
            tokens.append(token)
            return ok("credential", "IAM gives a token for the key")
        if 400 <= answer.status < 500 and isinstance(answer.document, dict):
            hint = f"set {prefix}IAM_APIKEY to a valid key; this one may be deleted, or belong to another cloud"
            return error("credential", f"IAM rejects the key: {answer.shown}", hint)
        hint = f"check that {prefix}IAM_ENDPOINT is IAM's address (https://iam.cloud.ibm.com)"
        return error("credential", f"no token from {target.host}: {answer.shown}", hint)

    def _try_login(self, login: _Login) -> Result:
        name = "account" if login.crn else "credential"
        return self._timed(name, lambda: self._login(name, login))

    def _login(self, name: str, login: _Login) -> Result:
        target = self._target(login.variable)
        headers = {**login.headers, "Accept": "application/json"}
        answer = self._request(target, "GET", login.path, headers=headers)
        if answer.is_proxys:
            return error(name, f"{answer.shown} from the proxy, not from {target.host}", PROXY_HINT)
        if answer.status in (401, 403):
            hint = f"set a valid {login.credential}"
            if login.crn:
                hint = f"check that {login.crn} belongs to the key's account and that the key may use it"
            return error(name, f"{target.host} rejects the {login.credential}: {answer.shown}", hint)
        if answer.status == 404:
            hint = f"check that the service knows the resource by this name, and the path in {login.variable}"
            return error(name, f"{target.host} has no {printable(self._resource.name)}: {answer.shown}", hint)
        if answer.status >= 400 or answer.document is None:
            hint = f"check that {login.variable} is the address of the service's API"
            return error(name, f"{target.host} answers {answer.shown}", hint)
        return ok(name, f"{target.host} accepts the {login.credential}")

    def _target(self, variable: str) -> Target:
        """Return the target of a variable; variables with the same value share one."""
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
        # With TLS no proxy can answer in the service's place; without it a proxy can, with a page of its own.
        target.proxy is not None
        and not target.is_tls
        and response.status_code >= 400
        and (document is None or any(name in response.headers for name in _PROXY_HEADERS))
    )
    return _Answer(response.status_code, printable(str(words), _MAX_WORDS_CHARS), document, is_proxys)


def _words_of(document: Mapping[str, Any]) -> str:
    """Return the error in a JSON document: IAM's errorMessage and errorCode, or the first of the service's errors."""
    if "errorMessage" in document:
        return f"{document['errorMessage']} ({document.get('errorCode', 'no code')})"
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    return str(first["message"]) if isinstance(first, dict) and "message" in first else ""
