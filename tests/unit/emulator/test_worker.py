"""The worker's answers."""

from circuit_texts import BELL

from qrmi_emulator import worker


def test_an_unexpected_error_only_fails_its_own_job():
    """The worker continues with the next job."""
    job = {"program": "sampler", "params": 7, "name": "m", "device": "FakeManilaV2", "noise": False, "seed": 1}
    assert worker.answer(job, print)["failure"].startswith("The simulation failed: AttributeError")
    job["params"] = {"pubs": [[BELL, None, 5]]}
    assert "result" in worker.answer(job, lambda _: None)
    job["program"] = "noiselearner"
    assert "noiselearner" in worker.answer(job, print)["failure"]
