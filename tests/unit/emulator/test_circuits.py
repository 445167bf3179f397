"""Reading circuits and checking them against a device."""

import pytest
from circuit_texts import BELL, HEADER, configuration

from qrmi_emulator.circuits import read, target_of
from qrmi_emulator.failure import JobFailure

LINE = target_of(configuration(5))


def test_a_circuit_is_reduced_to_the_qubits_it_uses():
    """Idle qubits are not simulated."""
    assert read(BELL, target_of(configuration(156))).active == (3, 4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "cannot be read"),
        (HEADER + "qubit[1] q;\nfoo q[0];", "cannot be read"),
        (HEADER + "h $0;", "h on qubits (0,) is not supported"),
        (HEADER + "cx $0, $2;", "cx on qubits (0, 2) is not supported"),
        (HEADER + "qubit[6] q;\nx q[5];", "uses 6 qubits; the backend has 5"),
        (HEADER + "bit[1] c;\nif (c[0]) { h $0; }", "h on qubits (0,) is not supported"),
        (None, "OpenQASM 3 text"),
        (7, "OpenQASM 3 text"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_invalid_circuit_is_refused(text, reason, capfd):
    """The error says what is wrong with it."""
    with pytest.raises(JobFailure) as caught:
        read(text, LINE)
    assert reason in str(caught.value)
