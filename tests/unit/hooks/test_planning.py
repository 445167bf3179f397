"""From a job's `--qpu` to what Prolog tries."""

from qrmi_slurm.hooks import planning


def test_a_users_variable_belongs_to_the_resource_with_the_longest_name():
    """One resource's name may begin with another's and QRMI's own prefix."""
    variables = ["x_QRMI_A", "x_QRMI_QRMI_A", "x_QRMI_JOB_QRMI_A", "x_QRMI_QRMI_QRMI_A", "y_QRMI_A", "x_A", "x"]
    known = ["x", "x_QRMI", "x_QRMI_JOB", "unused"]
    found = planning._by_resource(dict.fromkeys(variables, "1"), known)
    assert {name: list(own) for name, own in found.items()} == {
        "x": ["x_QRMI_A"],
        "x_QRMI": ["x_QRMI_QRMI_A", "x_QRMI_QRMI_QRMI_A"],
        "x_QRMI_JOB": ["x_QRMI_JOB_QRMI_A"],
    }


def test_thousands_of_variables_for_hundreds_of_resources_are_sorted_at_once():
    known = [f"qpu_{number}" for number in range(500)]
    variables = {f"qpu_{number % 500}_QRMI_V{number}": "1" for number in range(10_000)}
    assert len(planning._by_resource(variables, known)["qpu_7"]) == 20
