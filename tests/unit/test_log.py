"""The hooks' log: one line per event, to standard output and syslog, without secrets."""

import _socket
import io
import re
import socket
import syslog
import threading
import time
from unittest.mock import patch

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret


@pytest.fixture
def log(syslog_lines):
    return HookLog("prolog", 12)


def test_an_event_is_one_line_with_job_and_details(log, capsys, syslog_lines):
    log.info("acquired", qpu="a", seconds=1.23456, reason="two words", empty="")
    line = 'info: acquired: job=12 qpu=a seconds=1.235 reason="two words" empty=""'
    assert capsys.readouterr().out == f"qrmi-slurm-prolog: {line}\n"
    assert syslog_lines == [(syslog.LOG_INFO, line)]


def test_levels_are_syslogs(log, syslog_lines):
    log.error("e")
    log.warning("w")
    log.info("i")
    assert [level for level, _ in syslog_lines] == [syslog.LOG_ERR, syslog.LOG_WARNING, syslog.LOG_INFO]


def test_qrmis_own_records_keep_their_level(log, syslog_lines):
    records = ["[2026-01-31T12:00:00Z ERROR qrmi::ibm] no", "[2026-01-31T12:00:00Z TRACE qrmi] x", "no level", "", "["]
    log.qrmi("a", records)
    levels = [syslog.LOG_ERR, syslog.LOG_DEBUG, syslog.LOG_INFO, syslog.LOG_INFO, syslog.LOG_INFO]
    assert [level for level, _ in syslog_lines] == levels


def test_a_hook_logs_only_so_many_of_qrmis_records(log, syslog_lines):
    """64 QPUs of one job, each with a service that says 1000 lines, were 64,000 lines."""
    for number in range(64):
        log.qrmi(f"q{number}", ["x"] * 1000)
    log.info("released")
    assert len(syslog_lines) == 4002
    assert syslog_lines[-2][1] == 'warning: qrmi: job=12 qpu=q4 says="more than 4000 lines: cut here"'
    assert syslog_lines[-1][1] == "info: released: job=12"


@given(st.text(max_size=1200), st.text(max_size=1200))
def test_no_hidden_secret_and_no_second_line_is_ever_written(before, after):
    """Wherever the secret is, and wherever a long line is cut."""
    lines = []

    def take(name, level, line):
        lines.append(line)
        return True

    with patch("qrmi_slurm.log._to_syslog", take), patch("sys.stdout", io.StringIO()) as out:
        log = HookLog("epilog", "?")
        log.hide([Secret(SECRET)])
        log.error("e", reason=before + SECRET + after)
        log.qrmi("a", [before + SECRET + after])
        printed = out.getvalue()
    assert len(printed.splitlines()) == len(lines) == 2
    assert not any("test-secret" in line for line in lines)
    assert "test-secret" not in printed


def test_an_unexpected_error_is_logged_with_its_traceback_in_one_line(log, syslog_lines):
    try:
        raise RuntimeError("out\nof order")
    except RuntimeError:
        log.exception("surprise")
    [(level, line)] = syslog_lines
    assert level == syslog.LOG_ERR
    assert "RuntimeError: out" in line
    assert "\n" not in line


def test_a_traceback_is_masked_before_it_is_cut(log, syslog_lines):
    """A cut through a secret would leave a part that no longer matches."""
    log.hide([Secret(SECRET * 3)])
    try:
        raise RuntimeError(SECRET * 3 + "x" * 880)
    except RuntimeError:
        log.exception("surprise")
    is_seen = "Kq7" in syslog_lines[0][1]
    assert not is_seen


def test_a_closed_standard_output_does_not_stop_a_hook(syslog_lines, monkeypatch):
    """slurmd may be gone; the exit status must still be 0, and syslog gets the line."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    HookLog("prolog", 12).error("e")
    assert syslog_lines


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The path of syslog's socket."""
    monkeypatch.setattr("qrmi_slurm.log._SYSLOG_SOCKET", str(tmp_path / "log"))
    return str(tmp_path / "log")


@pytest.fixture
def daemon(place):
    """The daemon's end of syslog's socket, which nobody reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(place)
        yield end


def fill(daemon):
    """Send so much to a daemon that its queue is full, as any user may."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.connect(daemon.getsockname())
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                other.send(b"x")


def test_a_syslog_daemon_that_hangs_delays_no_hook(capsys, daemon):
    """With a full queue, syslog(3) would wait forever: the lines only go to standard output, and the hook goes on."""
    fill(daemon)
    log = HookLog("prolog", 12)
    started_s = time.monotonic()
    for _ in range(20):
        log.info("acquired")
    assert time.monotonic() - started_s < 2
    assert capsys.readouterr().out.count("acquired") == 20


def test_a_daemon_that_took_no_line_gets_later_ones(daemon, monkeypatch):
    """A broker's log goes on after somebody has filled the queue for a moment."""
    now_s = [1000.0]
    monkeypatch.setattr("qrmi_slurm.log.time.monotonic", lambda: now_s[0])
    fill(daemon)
    log = HookLog("broker", 12, echo=False)
    log.info("lost")
    daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            daemon.recv(100)
    log.info("too-soon")
    now_s[0] += 61
    log.info("later")
    assert daemon.recv(1000).endswith(b"info: later: job=12")


def test_a_queue_that_somebody_fills_at_the_last_moment_delays_no_hook(capsys, daemon, monkeypatch):
    """Between any question for room and the sending of the line."""

    class Sudden(_socket.socket):
        def connect(self, address):
            super().connect(address)
            fill(daemon)

    monkeypatch.setattr("qrmi_slurm.log._socket.socket", Sudden)
    started_s = time.monotonic()
    HookLog("prolog", 12).info("acquired")
    assert time.monotonic() - started_s < 2
    assert "acquired" in capsys.readouterr().out


def test_a_busy_syslog_daemon_is_waited_for(daemon):
    fill(daemon)
    reader = threading.Timer(0.1, lambda: [daemon.recv(100) for _ in range(5)])
    reader.start()
    HookLog("prolog", 12).info("acquired")
    reader.join()
    daemon.setblocking(False)
    received = []
    with pytest.raises(BlockingIOError):
        while True:
            received.append(daemon.recv(1000))
    assert received[-1].endswith(b"info: acquired: job=12")


LINE = rb"<30>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d qrmi-slurm-prolog\[\d+\]: info: acquired: job=12"


def test_a_syslog_daemon_gets_each_line_as_syslog_writes_it(daemon):
    log = HookLog("prolog", 12)
    log.info("acquired")
    log.error("surprise", text="\ud800")
    assert re.fullmatch(LINE, daemon.recv(1000))
    assert daemon.recv(1000).startswith(b"<27>")


def test_a_syslog_daemon_with_a_stream_gets_each_line_as_well(place):
    """As older ones have; the lines end with a NUL there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(place)
        listening.listen()
        HookLog("prolog", 12).info("acquired")
        with listening.accept()[0] as connection:
            assert re.fullmatch(LINE + rb"\0", connection.recv(1000))


def test_without_a_syslog_daemon_lines_go_to_standard_output(place, capsys):
    log = HookLog("prolog", 12)
    for _ in range(2):
        log.info("acquired")
    assert capsys.readouterr().out.count("acquired") == 2
