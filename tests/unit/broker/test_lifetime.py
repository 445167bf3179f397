"""When a broker ends by itself."""

from qrmi_slurm.broker.lifetime import Lifetime


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def lifetime(clock, ends_s=60.0, *, is_gone=lambda: False):
    return Lifetime(is_gone, ends_s, clock)


def test_it_ends_with_its_jobs_folder():
    assert lifetime(Clock()).why_over() == ""
    assert lifetime(Clock(), is_gone=lambda: True).why_over() == "its job has released its QPUs"


def test_it_ends_an_hour_after_the_jobs_time_limit():
    clock = Clock()
    life = lifetime(clock)
    clock.now_s = 3659.0
    assert life.why_over() == ""
    clock.now_s = 3661.0
    assert life.why_over() == "its job's time limit has passed, and it is no longer used"


def test_it_does_not_end_within_an_hour_of_its_last_use():
    clock = Clock()
    life = lifetime(clock)
    clock.now_s = 3600.0
    life.touch()
    clock.now_s = 7199.0
    assert life.why_over() == ""
    clock.now_s = 7201.0
    assert life.why_over()
