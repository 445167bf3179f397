"""The hooks' log: one line per event, to standard output and syslog, without secrets."""

import io
import socket
import syslog
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


@given(st.text(max_size=1200), st.text(max_size=1200))
def test_no_hidden_secret_and_no_second_line_is_ever_written(before, after):
    """Wherever the secret is, and wherever a long line is cut."""
    lines = []
    with patch("syslog.syslog", lambda level, line: lines.append(line)), patch("sys.stdout", io.StringIO()) as out:
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
    """A cut through a secret would leave a half that no longer matches."""
    log.hide([Secret(SECRET * 3)])
    try:
        raise RuntimeError(SECRET * 3 + "x" * 880)
    except RuntimeError:
        log.exception("surprise")
    is_seen = "Kq7" in syslog_lines[0][1]
    assert not is_seen


def test_an_unread_standard_output_does_not_stop_a_hook(syslog_lines, monkeypatch):
    """slurmd may be gone; the exit status must be 0 all the same, and syslog has the line."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    HookLog("prolog", 12).error("e")
    assert syslog_lines


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """The daemon's end of the socket, which nobody reads yet."""
    monkeypatch.setattr("qrmi_slurm.log._SYSLOG_SOCKET", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "log"))
        yield end


def test_a_hanging_syslog_daemon_does_not_delay_a_hook(log, capsys, syslog_lines, daemon):
    """Its queue is full, so syslog(3) would wait forever: the lines are on standard output, and the hook goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.connect(daemon.getsockname())
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                other.send(b"x")
    started_s = time.monotonic()
    for _ in range(20):
        log.info("acquired")
    assert time.monotonic() - started_s < 2
    assert syslog_lines == []
    assert capsys.readouterr().out.count("acquired") == 20


def test_a_working_syslog_daemon_gets_each_line(log, syslog_lines, daemon):
    log.info("acquired")
    log.info("released")
    assert len(syslog_lines) == 2
