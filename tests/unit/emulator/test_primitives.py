"""Sampler and estimator: what they accept and what they return."""

import json

import numpy as np
import pytest
from circuit_texts import BELL, BELL_UNMEASURED, HEADER, configuration
from qiskit_ibm_runtime.json import RuntimeDecoder

from qrmi_emulator import devices, primitives
from qrmi_emulator.circuits import target_of
from qrmi_emulator.failure import JobFailure
from qrmi_emulator.options import BackendSpec
from qrmi_emulator.simulate import Simulator

LINE = target_of(configuration(5))


def simulator(noisy=False):
    properties = devices.load(BackendSpec("m", "FakeManilaV2")).properties if noisy else None
    return Simulator(properties, np.random.default_rng(7), lambda _: None)


def run(program, params, noisy=False):
    return json.loads(primitives.run(program, params, LINE, simulator(noisy)), cls=RuntimeDecoder)


def counts(pub_result, register="c"):
    return getattr(pub_result.data, register).get_counts()


@pytest.mark.parametrize("noisy", [False, True])
def test_the_bits_of_a_bell_pair_agree(noisy):
    """Without noise they always agree, with noise nearly always."""
    found = counts(run("sampler", {"pubs": [[BELL, None, 2000]]}, noisy=noisy)[0])
    agreeing = found.get("00", 0) + found.get("11", 0)
    assert sum(found.values()) == 2000
    assert agreeing == 2000 if not noisy else 1700 < agreeing < 2000
    assert 800 < found["00"] < 1200


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "pubs must be"),
        ({"pubs": [BELL]}, "pubs must be"),
        ({"pubs": [[BELL, None, 0]]}, "number of shots"),
        ({"pubs": [[BELL, None, 20001]]}, "number of shots"),
        ({"pubs": [[BELL, [1.0], 10]]}, "has 0 parameters"),
        ({"pubs": [[BELL, ["x"], 10]]}, "are invalid"),
        ({"pubs": [[BELL, None, 10]], "version": 1}, "Version 1"),
    ],
)
def test_invalid_input_is_refused(params, reason):
    """The error says what is wrong with it."""
    with pytest.raises(JobFailure, match=reason):
        primitives.run("sampler", params, LINE, simulator())


def test_parameters_are_in_the_order_of_their_declaration():
    """The `input` lines define the order, not the alphabet."""
    text = HEADER + "input float[64] t_2;\ninput float[64] t_10; // input float[64] no;\nbit[2] c;\n"
    text += "sx $0; rz(t_2) $0; sx $0; sx $1; rz(t_10) $1; sx $1;\nc[0] = measure $0;\nc[1] = measure $1;\n"
    result = run("sampler", {"pubs": [[text, [[np.pi, 0.0], [0.0, np.pi]], 50]]})[0]
    assert result.data.c.shape == (2,)
    assert [counts_of.get_counts() for counts_of in (result.data.c[0], result.data.c[1])] == [{"10": 50}, {"01": 50}]


def test_circuits_can_depend_on_their_own_measurements():
    """A bit that is measured in mid-circuit controls a later gate."""
    text = HEADER + "bit[1] a;\nbit[1] b;\nx $0;\na[0] = measure $0;\nif (a[0]) { x $1; }\nb[0] = measure $1;\n"
    result = run("sampler", {"pubs": [[text, None, 20]]})[0]
    assert counts(result, "a") == counts(result, "b") == {"1": 20}


def test_plain_results_are_json():
    """Without Qiskit's types, samples are hexadecimal."""
    text = primitives.run("sampler", {"pubs": [[BELL, None, 9]], "support_qiskit": False}, LINE, simulator())
    data = json.loads(text)["results"][0]["data"]["c"]
    assert data["num_bits"] == 2 and set(data["samples"]) <= {"0x0", "0x3"} and len(data["samples"]) == 9


def test_the_estimator_returns_a_value_per_observable():
    """Values have the observables' shape; idle qubits are in state 0; precision 0 is exact."""
    observables = [{"XXIII": 1.0, "ZZIII": 0.5, "IIIIZ": 2.0, "IIIIX": 9.0}, {"1IIII": 1.0}, {"0000I": 1.0}]
    exact = run("estimator", {"pubs": [[BELL_UNMEASURED, observables, [], 0.0]]})[0].data
    assert np.allclose(exact.evs, [3.5, 0.5, 0.5]) and np.allclose(exact.stds, 0)
    drawn = run("estimator", {"pubs": [[BELL_UNMEASURED, "ZIIII", [], 0.05]]})[0]
    assert abs(float(drawn.data.evs)) < 0.25 and 0.04 < float(drawn.data.stds) <= 0.051
    assert drawn.metadata["shots"] == 400


def test_observables_and_parameter_values_broadcast():
    """They are broadcast as NumPy does."""
    text = HEADER + "input float[64] theta;\nsx $0; rz(theta) $0; sx $0;\n"
    pub = [text, [[{"IIIIZ": 1.0}], [{"IIIIX": 1.0}]], [[0.0], [np.pi]], 0.0]
    assert np.allclose(run("estimator", {"pubs": [pub]})[0].data.evs, [[-1, 1], [0, 0]], atol=1e-9)
    with pytest.raises(JobFailure, match="cannot be broadcast"):
        run("estimator", {"pubs": [[text, ["Z", "Z", "Z"], [[0.0], [1.0]], 0.0]]})


@pytest.mark.parametrize("observable", ["ZZZZZZ", "Q", {"Z": "1"}, {"Z": 1j}, [], 5, [["Z"], "Z"]])
def test_an_invalid_observable_is_refused(observable):
    """Letters, width, coefficients and shape are checked."""
    with pytest.raises(JobFailure):
        primitives.observable_array(observable, 5)
