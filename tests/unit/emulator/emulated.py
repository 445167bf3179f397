"""The emulator in the test's own process, with a clock that tests can move."""

import threading
from dataclasses import dataclass

from werkzeug.test import Client

from qrmi_emulator import devices
from qrmi_emulator.calls import Calls
from qrmi_emulator.control import Control, RequestBook
from qrmi_emulator.faults import FaultBook
from qrmi_emulator.iam import APIKEY_GRANT, TokenIssuer
from qrmi_emulator.options import BackendSpec
from qrmi_emulator.server import Application, RequestLog
from qrmi_emulator.service import Service
from qrmi_slurm.secret import Secret

CRN = "crn:test"
KEY = "planted-api-key"
BACKEND = BackendSpec("ibm_demo", "FakeManilaV2")


class Clock:
    """A clock that only moves when a test moves it."""

    def __init__(self):
        self.now_s = 1_700_000_000.0

    def __call__(self):
        return self.now_s

    def move(self, seconds):
        self.now_s += seconds


class Lines:
    """A stream that keeps what is written to it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@dataclass
class Emulated:
    """The emulator's application and its parts."""

    application: Application
    service: Service
    faults: FaultBook
    printed: Lines
    client: Client

    def call(self, method, path, **options):
        headers = {"Authorization": f"Bearer {self.token()}", "Service-CRN": CRN} | options.pop("headers", {})
        return self.client.open(path, method=method, headers=headers, **options)

    def token(self, key=KEY):
        return self.ask_token(key).json["access_token"]

    def ask_token(self, key=KEY, grant=APIKEY_GRANT):
        return self.client.post("/identity/token", data={"grant_type": grant, "apikey": key})

    def control(self, method, what, **options):
        options.setdefault("environ_base", {"REMOTE_ADDR": "127.0.0.1"})
        return self.client.open(f"/_emulator/{what}", method=method, **options)

    def new_session(self, **body):
        answer = self.call("POST", "/sessions", json={"backend": BACKEND.name, "mode": "dedicated"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json["id"]


def emulate(clock):
    """Return an application that serves one backend, FakeManilaV2."""
    service = Service([BACKEND.name], clock)
    faults, requests, printed = FaultBook(), RequestBook(), Lines()
    calls = Calls(service, TokenIssuer(Secret(KEY), 3600, clock), {BACKEND.name: devices.load(BACKEND)}, CRN)
    control = Control(service, faults, requests)
    application = Application(calls, control, faults, requests, RequestLog(printed, clock), threading.Event())
    return Emulated(application, service, faults, printed, Client(application))
