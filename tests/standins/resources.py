"""A resource of each of QRMI's types, as qrmi_config.json describes it, with stand-ins as their services."""

import base64
from typing import Any

# QRMI takes a Pasqal Cloud resource's name as the device type, of which it knows five.
PASQAL_CLOUD_DEVICE = "EMU_FREE"
SECRET = "test-secret-of-the-site"
FELIS_KEY = base64.b64encode(f"user:{SECRET}".encode()).decode()


def _ibm(prefix: str) -> dict[str, str]:
    return {
        f"QRMI_IBM_{prefix}_ENDPOINT": "{url}",
        f"QRMI_IBM_{prefix}_IAM_ENDPOINT": "{url}",
        f"QRMI_IBM_{prefix}_IAM_APIKEY": SECRET,
        f"QRMI_IBM_{prefix}_SERVICE_CRN": "crn:v1:test",
    }


VARIABLES: dict[str, dict[str, str]] = {
    "alice-bob-felis": {"QRMI_AB_FELIS_BASE_ENDPOINT": "{url}", "QRMI_AB_FELIS_API_KEY": FELIS_KEY},
    "direct-access": _ibm("DA"),
    "ibm-quantum-compute-service": _ibm("QCS"),
    "ibm-quantum-system": _ibm("QS"),
    "iqm-server": {"QRMI_IQM_ISA_ENDPOINT": "{url}", "QRMI_IQM_ISA_TOKEN": SECRET},
    "oqtopus": {"QRMI_OQTOPUS_URL": "{url}", "QRMI_OQTOPUS_API_TOKEN": SECRET},
    "pasqal-cloud": {
        "QRMI_PASQAL_CLOUD_BASE_URL": "{url}",
        "QRMI_PASQAL_CLOUD_PROJECT_ID": "test-project",
        "QRMI_PASQAL_CLOUD_AUTH_TOKEN": SECRET,
    },
    "pasqal-local": {"QRMI_WARDEN_URL": "{url}"},
    "qiskit-runtime-service": _ibm("QRS"),
}


def resource(type_name: str, url: str) -> dict[str, Any]:
    """Return the config's entry for a type whose service is at `url`."""
    name = PASQAL_CLOUD_DEVICE if type_name == "pasqal-cloud" else f"my_{type_name.replace('-', '_')}"
    environment = {variable: value.format(url=url) for variable, value in VARIABLES[type_name].items()}
    return {"name": name, "type": type_name, "environment": environment}
