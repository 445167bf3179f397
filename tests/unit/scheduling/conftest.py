"""A site whose QPUs are licenses, against stand-ins for Slurm and QRMI."""

import json
import time

import pytest


@pytest.fixture
def counted(site, slurm, monkeypatch):
    """A site whose QPUs a and b have a license each, for one job at a time."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    slurm.licenses = {"qpu_a": (1, 0), "qpu_b": (1, 0)}
    slurm.now_s = time.time()
    return site


@pytest.fixture
def sense(run):
    """Return a function that runs the sensor and returns its JSON output."""

    def run_sensor(*words, status=0):
        exit_status, out, err = run("sensor", "--json", *words)
        assert exit_status == status, err
        return json.loads(out)

    return run_sensor


@pytest.fixture
def set_states():
    """Return a function that makes QRMI report these states of the site's QPUs; None for no answer."""

    def set_states_of(site, *resources, **states):
        site.resources.clear()
        for name, state in states.items():
            site.add(name, status=state or "exit")
        site.resources.extend(resources)
        site.write_config(json.dumps({"resources": site.resources}))

    return set_states_of
