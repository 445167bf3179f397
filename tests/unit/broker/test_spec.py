"""What Prolog and a broker tell each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.broker import spec
from qrmi_slurm.broker.spec import Bucket, Qpu, Spec
from qrmi_slurm.errors import BrokerError
from qrmi_slurm.secret import Secret

texts = st.text(max_size=20)
secrets = texts.map(Secret)
buckets = st.builds(Bucket, texts, texts, texts, texts, secrets, secrets, texts)
qpus = st.builds(Qpu, texts, secrets, st.none() | texts, texts, texts, secrets, texts, st.none() | buckets)
specs = st.builds(
    Spec,
    job_id=st.integers(1),
    uid=st.integers(0),
    port=st.integers(0, 65535),
    ends_s=st.floats(0, 1e12),
    qpus=st.lists(st.none() | qpus, max_size=3).map(tuple),
    env=st.dictionaries(texts, texts, max_size=3),
)


@given(specs)
def test_a_spec_arrives_as_it_was_sent(sent):
    line = spec.encode(sent)
    assert line.count(b"\n") == 1
    assert spec.parse(line) == sent


@pytest.mark.parametrize("text", [b"", b"{}", b"{}\n", b"[]\n", b'{"job_id": 1\n', b"null\n"])
def test_a_truncated_spec_is_an_error(text):
    """Prolog was killed while it wrote it."""
    with pytest.raises(ValueError):
        spec.parse(text)


def test_its_repr_holds_no_secret():
    bucket = Bucket("e", "e", "b", "r", Secret("planted-1"), Secret("planted-2"), "p/")
    qpu = Qpu("q", Secret("planted-3"), "s", "e", "i", Secret("planted-4"), "crn", bucket)
    assert "planted" not in repr(Spec(1, 2, 3, 4.0, (qpu,), {"https_proxy": "http://user:planted-5@proxy"}))
    assert [secret.reveal() for secret in qpu.secrets] == ["planted-4", "planted-1", "planted-2"]


def test_a_port_arrives():
    assert spec.parse_reply(spec.encode_port(4711)) == 4711


def test_an_error_arrives_in_one_line():
    with pytest.raises(BrokerError, match=r"cannot be started: Address already in use$"):
        spec.parse_reply(spec.encode_error("Address already in use"))
    with pytest.raises(BrokerError) as caught:
        spec.parse_reply(spec.encode_error("a\nb" * 1000))
    assert "\n" not in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize(
    "reply", [b"", b"garbage\n", b"[]\n", b"{}\n", b'{"port": "x"}\n', b'{"port": null}\n', b"null\n"]
)
def test_a_reply_in_another_form_is_an_error(reply):
    with pytest.raises(BrokerError, match="it sent an unreadable reply"):
        spec.parse_reply(reply)
