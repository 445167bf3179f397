"""QRMI's errors, with a sentence that tells a researcher whom to ask."""

import pytest

from qrmi_slurm.calls import reasons
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.failure import Kind

LOGIN = '; Token renewal failed: reqwest::Error {{ kind: {}, url: "http://iam/identity/token" }}'


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("authentication failed: {}" + LOGIN.format("Status(400, None)"), "the service refused the API key"),
        ("authentication failed: {}" + LOGIN.format("Status(503, None)"), "the login service answered 503"),
        ("authentication failed: {}" + LOGIN.format("Request"), "the login service cannot be reached"),
        ("authentication failed: {}", "the service refused the credentials"),
        ("error in reqwest: error sending request for url (http://x/sessions)", "http://x/sessions cannot be reached"),
        ("response body: 404 Not Found {}", "the service answered 404 Not Found"),
        ("error in serde: expected value at line 1", "QRMI could not read the service's answer"),
    ],
)
def test_a_sentence_is_put_before_qrmis_text(words, sentence):
    """The sentence is for the user, the text for the admin."""
    assert reasons.plain(words) == f"{sentence} ({words})"


def test_text_without_a_matching_sentence_is_unchanged():
    """Such as our own."""
    assert reasons.plain("no answer within 30 s") == "no answer within 30 s"


SAYS = "QRMI cannot get the QPU's status: "
NO_LOGIN = "authentication failed: Failed to obtain access token. reason: {}, url: http://x/identity/token"


def kind_of(words, verdict=Verdict.REFUSED, uid=None):
    call = Call("x", "ibm-quantum-compute-service", "acquire", {}, run_as_uid=uid)
    return reasons.kind(Answer(call, verdict, None, words, 0.1, ()))


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("the QPU is paused: maintenance until noon", Kind.PAUSED),
        ("the QPU is paused", Kind.PAUSED),
        ("the QPU is offline: back at noon", Kind.OFFLINE),
        ("the QPU is retired", Kind.OFFLINE),
        ("the QPU is not accessible", Kind.OFFLINE),
        ("no answer within 30 s", Kind.NO_ANSWER),
        ("no answer within 30 s; process 12 does not end", Kind.NO_ANSWER),
        ('response body: 429 Too Many Requests {"errors": []}', Kind.BUSY),
        ('response body: 503 Service Unavailable {"message": "404 401"}', Kind.SERVICE_ERROR),
        ("response body: 504 Gateway Timeout <html>", Kind.SERVICE_ERROR),
        ("response body: 408 Request Timeout", Kind.NO_ANSWER),
        ('response body: 404 Not Found {"errors": []}', Kind.PERMANENT),
        ('response body: 400 Bad Request {"message": "500 shots"}', Kind.PERMANENT),
        ("authentication failed: {}", Kind.PERMANENT),
        ("authentication failed: {}" + LOGIN.format("Status(401, None)"), Kind.PERMANENT),
        ("authentication failed: {}" + LOGIN.format("Status(503, None)"), Kind.SERVICE_ERROR),
        ("response body: 401 Unauthorized {}" + LOGIN.format("Status(429, None)"), Kind.BUSY),
        ("response body: 401 Unauthorized {}" + LOGIN.format("Request"), Kind.UNREACHABLE),
        ("error in reqwest: error sending request for url (http://x/sessions)", Kind.UNREACHABLE),
        ("error in serde: expected value at line 1", Kind.NO_ANSWER),
        (f"{SAYS}error in response: status code 503 Service Unavailable", Kind.SERVICE_ERROR),
        (f"{SAYS}error in response: status code 429 Too Many Requests", Kind.BUSY),
        (f"{SAYS}Status: 503 Service Unavailable, Fail {{}}", Kind.SERVICE_ERROR),
        (f"{SAYS}Status: 401 Unauthorized, Fail {{}}", Kind.PERMANENT),
        (f"{SAYS}request failed: reasons[0]: client error (Connect), reasons[1]: tcp connect error", Kind.UNREACHABLE),
        (f"{SAYS}expected value at line 1 column 1", Kind.NO_ANSWER),
        (f"{SAYS}get_device_json failed: the service cannot be reached", Kind.UNREACHABLE),
        (SAYS + NO_LOGIN.format("Service Unavailable (503 Service Unavailable)"), Kind.SERVICE_ERROR),
        (SAYS + NO_LOGIN.format("Unauthorized (401 Unauthorized)"), Kind.PERMANENT),
        ("invalid input: device 'q' is invalid", Kind.PERMANENT),
        ("munge encode failed: Socket communication error", Kind.PERMANENT),
        ("QRMI was killed by signal 9", Kind.PERMANENT),
        ("", Kind.PERMANENT),
    ],
)
def test_what_may_pass_is_told_from_what_stays(words, kind):
    """In the words of each type's client, as tests/contract sees them."""
    assert kind_of(words) is kind


def test_a_call_that_had_no_turn_had_no_answer():
    assert kind_of("it was not asked within 30 s, because ...", Verdict.UNASKED) is Kind.NO_ANSWER


def test_pasqals_cloud_says_nothing():
    """A refused key and an outage sound the same: the site's key has worked before, a user's may be wrong."""
    assert kind_of(f"{SAYS}failed to get device") is Kind.NO_ANSWER
    assert kind_of(f"{SAYS}failed to get device", uid=1001) is Kind.PERMANENT
