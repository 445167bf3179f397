"""QRMI's words, said so that a researcher knows whom to ask."""

import pytest

from qrmi_slurm.calls import reasons

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
def test_what_qrmi_says_gets_a_sentence_before_it(words, sentence):
    """The sentence is for the user, the words are for the admin."""
    assert reasons.plain(words) == f"{sentence} ({words})"


def test_words_that_are_plain_stay_as_they_are():
    """What nobody knows a better sentence for is not touched."""
    assert reasons.plain("no answer within 30 s") == "no answer within 30 s"
