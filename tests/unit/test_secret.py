"""Secrets are never shown, and are masked in texts."""

import copy
import traceback

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.secret import MASK, Secret, mask


@pytest.mark.parametrize(
    "show",
    [repr, str, "{}".format, "{!r}".format, "{:>40}".format, lambda s: f"{[s]} { ({'a': s}) }", lambda s: f"{s}"],
)
def test_a_secret_shows_as_a_mask(show):
    assert SECRET not in show(Secret(SECRET))
    assert MASK in show(Secret(SECRET))


def test_a_secret_in_an_exception_is_masked():
    try:
        raise ValueError(Secret(SECRET))
    except ValueError:
        assert SECRET not in traceback.format_exc()


def test_reveal_gives_the_secret_and_equality_holds():
    assert copy.copy(Secret(SECRET)).reveal() == SECRET
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


@given(st.lists(st.text(min_size=4, max_size=12), max_size=5), st.text(max_size=40), st.randoms())
def test_masked_text_holds_none_of_the_secrets(secrets, text, random):
    mixed = text
    for secret in secrets:
        place = random.randint(0, len(mixed))
        mixed = mixed[:place] + secret + mixed[place:]
    masked = mask(mixed, map(Secret, secrets))
    assert not any(secret in masked for secret in secrets if not set(secret) & set(MASK))


def test_of_two_overlapping_secrets_the_longer_is_masked_whole():
    assert mask("key=abcdef", [Secret("abcd"), Secret("abcdef")]) == "key=***"


def test_a_very_short_secret_does_not_garble_the_text():
    assert mask("a banana", [Secret("a"), Secret("")]) == "a banana"


def test_an_authorization_header_is_masked_whatever_its_value():
    """A service may echo the bearer token it issued for the key, which we have never seen."""
    said = "headers: {'authorization': 'Bearer eyJhbGciOi.JIUzI1NiJ9._x', 'x': 'Basic dXNlcjpwYXNzd29yZA=='}"
    assert mask(said, []) == "headers: {'authorization': 'Bearer ***', 'x': 'Basic ***'}"
    assert mask("Basic authentication is off", []) == "Basic authentication is off"
