"""The sensor's memory, as the next run, the switch and the doctor read it."""

import time

import pytest

from qrmi_slurm.checks import doctor
from qrmi_slurm.scheduling import memory
from qrmi_slurm.scheduling.memory import Memory


def test_a_memory_is_recalled_while_it_is_fresh(tmp_path):
    left = Memory(1000.0, {"a": 1}, {"qpu_b": "paused"})
    memory.remember(left, tmp_path)
    assert memory.recall(tmp_path, 1600.0) == left
    assert memory.recall(tmp_path, 1601.0) == Memory()
    assert memory.last_run(tmp_path) == left


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "ran_s": "x", "unanswered": 1}'])
def test_a_damaged_memory_is_ignored(tmp_path, text):
    (tmp_path / "sensor.json").write_text(text)
    assert memory.recall(tmp_path, time.time()) == Memory()


def test_the_doctor_sees_a_sensor_that_has_stopped():
    """Only on the node where it has run."""
    assert list(doctor.check_sensor(None, 1000.0)) == []
    (fresh,) = doctor.check_sensor(Memory(ran_s=970.0), 1000.0)
    assert (fresh.level, fresh.message) == ("ok", "ran 30 s ago")
    (stale,) = doctor.check_sensor(Memory(ran_s=0.0), 4000.0)
    assert stale.level == "warning"
    assert "has not run for 67 minutes" in stale.message
