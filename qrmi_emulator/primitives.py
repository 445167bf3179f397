"""Primitives: runs a job's pubs as sampler or estimator and encodes the results as the service does."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult

from qrmi_emulator.circuits import Circuit, Target, read
from qrmi_emulator.failure import JobFailure
from qrmi_emulator.simulate import Simulator

try:
    from qiskit_ibm_runtime.json import RuntimeEncoder
except ModuleNotFoundError:  # before qiskit-ibm-runtime 0.46
    from qiskit_ibm_runtime.utils import RuntimeEncoder

Array = np.ndarray[Any, Any]

DEFAULT_SHOTS = 4096  # the service's
DEFAULT_PRECISION = 0.015625  # the service's: 1 / sqrt(4096)
_MIN_AVERAGED_SHOTS = 1024  # for a circuit with measurements, whose expectation values are averaged
_MAX_RUNS = 20_000  # sets of parameter values in a pub; each is a simulation
# Each of these letters is half the identity plus or minus half a Pauli, so n of them make 2**n Pauli strings.
_PROJECTORS = {"0": ("Z", 1), "1": ("Z", -1), "+": ("X", 1), "-": ("X", -1), "r": ("Y", 1), "l": ("Y", -1)}
_MAX_PROJECTORS = 10
_IDLE_VALUES = {"I": 1.0, "Z": 1.0, "0": 1.0, "1": 0.0, "X": 0.0, "Y": 0.0}  # of a qubit in state 0; 0.5 for the others


@dataclass(frozen=True, slots=True)
class PubOutcome:
    """A pub's result.

    Args:
        arrays: for the sampler, booleans of shape (..., shots, bits) by register; for the estimator, numbers.
        shape: the pub's shape.
        metadata: as the service sends it.
    """

    arrays: Mapping[str, Array]
    shape: tuple[int, ...]
    metadata: dict[str, Any]


def run(program: str, params: Mapping[str, Any], target: Target, simulator: Simulator) -> str:
    """Return a job's results as the service's JSON text.

    Raises:
        JobFailure: the input is invalid, or a circuit cannot be simulated.
    """
    runners: dict[str, Callable[[list[Any], Mapping[str, Any], Target, Simulator], PubOutcome]] = {
        "sampler": _sample,
        "estimator": _estimate,
    }
    if program not in runners:
        raise JobFailure(f"The emulator cannot run the program {program}; it runs sampler and estimator.")
    pubs = params.get("pubs")
    if not isinstance(pubs, list) or not all(isinstance(pub, list) and pub for pub in pubs):
        raise JobFailure("pubs must be a list of lists.")
    if params.get("version", 2) != 2:
        raise JobFailure(f"Version {params['version']} of the input is not supported; use version 2.")
    outcomes = [runners[program](pub, params, target, simulator) for pub in pubs]
    encode = _encode_qiskit if params.get("support_qiskit", True) else _encode_plain
    return encode(outcomes, program)


def _sample(pub: list[Any], params: Mapping[str, Any], target: Target, simulator: Simulator) -> PubOutcome:
    circuit = read(pub[0], target)
    options = params.get("options") or {}
    shots = _first(_item(pub, 2), params.get("shots"), options.get("default_shots"), DEFAULT_SHOTS)
    if isinstance(shots, bool) or not isinstance(shots, int) or not 1 <= shots <= target.max_shots:
        raise JobFailure(f"The number of shots must be from 1 to {target.max_shots}, not {shots!r}.")
    values = bindings(_item(pub, 1), circuit)
    shape = values.shape[:-1]
    _check_runs(shape)
    runs = [simulator.sample(circuit, values[index], shots) for index in np.ndindex(shape)]
    bits = np.array(runs, dtype=bool).reshape((*shape, shots, circuit.body.num_clbits))
    place = {bit: at for at, bit in enumerate(circuit.body.clbits)}
    arrays = {register.name: bits[..., [place[bit] for bit in register]] for register in circuit.body.cregs}
    return PubOutcome(arrays, shape, {"circuit_metadata": {}})


def _estimate(pub: list[Any], params: Mapping[str, Any], target: Target, simulator: Simulator) -> PubOutcome:
    circuit = read(pub[0], target)
    precision = _precision(pub, params)
    values = bindings(_item(pub, 2), circuit)
    observables = observable_array(_item(pub, 1), target.n_qubits)
    try:
        shape = np.broadcast_shapes(values.shape[:-1], observables.shape)
    except ValueError as error:
        raise JobFailure(
            f"Parameter values of shape {values.shape[:-1]} and observables of shape {observables.shape} cannot be "
            "broadcast together."
        ) from error
    _check_runs(shape)
    values = np.broadcast_to(values, (*shape, values.shape[-1]))
    cells = np.broadcast_to(observables, shape).ravel().tolist()
    terms = {at: _terms(cell, circuit.active) for at, cell in zip(np.ndindex(shape), cells, strict=True)}
    shots = ceil(1 / precision**2) if precision > 0 else 0
    evs, stds = np.zeros(shape), np.zeros(shape)
    same: dict[bytes, list[tuple[int, ...]]] = {}  # one simulation for all observables of the same values
    for at in terms:
        same.setdefault(values[at].tobytes(), []).append(at)
    for places in same.values():
        paulis = sorted({pauli for at in places for pauli in terms[at]})
        found = simulator.expectations(circuit, values[places[0]], paulis, max(shots, _MIN_AVERAGED_SHOTS))
        exact = dict(zip(paulis, found.tolist(), strict=True))
        for at in places:
            evs[at], stds[at] = _measured(terms[at], exact, shots, simulator.rng)
    arrays = {"evs": evs, "stds": stds, "ensemble_standard_error": stds.copy()}
    metadata = {"shots": shots, "target_precision": precision, "circuit_metadata": {}, "resilience": {}}
    return PubOutcome(arrays, shape, metadata)


def _measured(
    terms: Mapping[str, float], exact: Mapping[str, float], shots: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return value and standard error as if each term were measured with `shots` shots; 0 shots is exact."""
    value, variance = 0.0, 0.0
    for pauli, coefficient in terms.items():
        mean = min(1.0, max(-1.0, exact[pauli]))
        if shots and abs(mean) < 1.0:
            variance += coefficient**2 * (1 - mean**2) / shots
            mean = 2 * rng.binomial(shots, (1 + mean) / 2) / shots - 1
        value += coefficient * mean
    return value, variance**0.5


def bindings(given: object, circuit: Circuit) -> Array:
    """Return a pub's parameter values; the last axis runs over the circuit's inputs.

    Raises:
        JobFailure: they are not finite numbers, or not one for each of the circuit's inputs.
    """
    n_inputs = len(circuit.inputs)
    if given is None:
        given = []
    try:
        if isinstance(given, dict):
            columns = np.broadcast_arrays(*(np.asarray(given[name], dtype=float) for name in circuit.inputs))
            values = np.stack(columns, axis=-1) if columns else np.zeros(0)
        else:
            values = np.asarray(given, dtype=float)
    except (TypeError, ValueError, KeyError) as error:
        raise JobFailure(f"The parameter values are invalid: {error}") from error
    if values.ndim == 0:
        values = values.reshape(1)
    if values.shape[-1] != n_inputs:
        raise JobFailure(f"The circuit has {n_inputs} parameters, but there are values for {values.shape[-1]}.")
    if not np.isfinite(values).all():
        raise JobFailure("A parameter's value is not a finite number.")
    return values


def observable_array(given: object, n_qubits: int) -> Array:
    """Return observables in the shape that they were given in; each maps Pauli strings to coefficients.

    Raises:
        JobFailure: a string has invalid letters or is wider than the backend, or a coefficient is not real.
    """
    if isinstance(given, str):
        given = {given: 1.0}
    if isinstance(given, dict):
        for pauli, coefficient in given.items():
            if not isinstance(pauli, str) or set(pauli) - {"I", "X", "Y", "Z", *_PROJECTORS}:
                raise JobFailure(f"{pauli!r} is not an observable.")
            if len(pauli) > n_qubits:
                raise JobFailure(f"An observable has {len(pauli)} qubits; the backend has {n_qubits}.")
            if isinstance(coefficient, bool) or not isinstance(coefficient, int | float):
                raise JobFailure(f"The coefficient {coefficient!r} of an observable is not a real number.")
        cell = np.empty((), dtype=object)
        cell[()] = given
        return cell
    if not isinstance(given, list) or not given:
        raise JobFailure("Observables must be strings, objects, or lists of these.")
    cells = [observable_array(item, n_qubits) for item in given]
    if len({cell.shape for cell in cells}) != 1:
        raise JobFailure("The lists of observables have different lengths.")
    return np.stack(cells)


def _terms(observable: Mapping[str, float], active: tuple[int, ...]) -> dict[str, float]:
    """Return an observable as Pauli strings over the active qubits; idle qubits are in state 0."""
    terms: dict[str, float] = {}
    used = set(active)
    for pauli, coefficient in observable.items():
        letters = pauli[::-1]  # the last letter is qubit 0
        factor = prod(_IDLE_VALUES.get(p, 0.5) for at, p in enumerate(letters) if at not in used)
        if factor == 0.0:
            continue
        here = [letters[at] if at < len(letters) else "I" for at in active]
        if sum(letter in _PROJECTORS for letter in here) > _MAX_PROJECTORS:
            raise JobFailure(f"The emulator supports up to {_MAX_PROJECTORS} projectors in an observable.")
        expanded = [("", coefficient * factor)]
        for letter in here:  # starts with qubit 0, whose letter is the last
            if letter not in _PROJECTORS:
                expanded = [(letter + tail, weight) for tail, weight in expanded]
                continue
            axis, sign = _PROJECTORS[letter]
            expanded = [("I" + tail, weight / 2) for tail, weight in expanded] + [
                (axis + tail, sign * weight / 2) for tail, weight in expanded
            ]
        for string, weight in expanded:
            terms[string] = terms.get(string, 0.0) + weight
    return terms


def _precision(pub: list[Any], params: Mapping[str, Any]) -> float:
    options = params.get("options") or {}
    shots = options.get("default_shots")
    of_shots = 1 / shots**0.5 if isinstance(shots, int) and shots > 0 else None
    precision = _first(
        _item(pub, 3), params.get("precision"), of_shots, options.get("default_precision"), DEFAULT_PRECISION
    )
    if isinstance(precision, bool) or not isinstance(precision, int | float) or not 0 <= precision <= 1:
        raise JobFailure(f"The precision must be from 0 to 1, not {precision!r}.")
    return max(float(precision), 1e-6) if precision else 0.0


def _check_runs(shape: tuple[int, ...]) -> None:
    if prod(shape) > _MAX_RUNS:
        raise JobFailure(f"The emulator runs up to {_MAX_RUNS} sets of parameter values per pub, not {prod(shape)}.")


def _item(pub: list[Any], at: int) -> Any:
    return pub[at] if at < len(pub) else None


def _first(*candidates: Any) -> Any:
    return next((candidate for candidate in candidates if candidate is not None), None)


def _encode_qiskit(outcomes: list[PubOutcome], program: str) -> str:
    """Encode results as Qiskit's own types, for `ResultDecoder`."""
    results: list[PubResult] = []
    for outcome in outcomes:
        if program == "sampler":
            fields = {name: BitArray.from_bool_array(bits, order="little") for name, bits in outcome.arrays.items()}
            results.append(SamplerPubResult(DataBin(**fields, shape=outcome.shape), metadata=outcome.metadata))
        else:
            results.append(PubResult(DataBin(**outcome.arrays, shape=outcome.shape), metadata=outcome.metadata))
    return json.dumps(PrimitiveResult(results, metadata={"version": 2}), cls=RuntimeEncoder)


def _encode_plain(outcomes: list[PubOutcome], program: str) -> str:
    """Encode results without Qiskit's types, as the service does if `support_qiskit` is false."""
    results = []
    for outcome in outcomes:
        data: dict[str, Any] = {}
        for name, array in outcome.arrays.items():
            if program == "sampler":
                data[name] = {"samples": _hexadecimal(array), "num_bits": array.shape[-1]}
            else:
                data[name] = array.tolist()
        results.append({"data": data, "metadata": outcome.metadata})
    return json.dumps({"results": results, "metadata": {"version": 2}})


def _hexadecimal(bits: Array) -> Any:
    """Return shots as the service writes them, such as `0x3`, in nested lists of the pub's shape."""
    if bits.ndim > 2:
        return [_hexadecimal(part) for part in bits]
    packed = np.packbits(bits, axis=1, bitorder="little")
    return [hex(int.from_bytes(row.tobytes(), "little")) for row in packed]
