"""Fixtures for the emulator's unit tests."""

import threading

import pytest
from emulated import BACKEND, Clock, emulate

from qrmi_emulator.server import listen
from qrmi_emulator.service import Service


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def service(clock):
    return Service([BACKEND.name, "ibm_other"], clock)


@pytest.fixture
def emulated(clock):
    return emulate(clock)


@pytest.fixture
def address(emulated):
    """Serve the application on a real port and return its host and port."""
    server = listen("127.0.0.1", 0, emulated.application)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield "127.0.0.1", server.port
    server.shutdown()
    thread.join()
    server.server_close()
