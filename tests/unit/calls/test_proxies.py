"""Which proxy a request takes."""

import pytest
from doubles import SECRET

from qrmi_slurm.calls import proxies


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://a.example", {}, None),
        ("https://a.example", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://a.example", {"http_proxy": "http://p:1"}, None),
        ("http://a.example", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"all_proxy": "socks5://p:1"}, "socks5://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "b.example, .example"}, None),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "a.example"}, None),
        ("https://ba.example", {"https_proxy": "http://p:1", "no_proxy": "a.example"}, "http://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "*"}, None),
        ("https://10.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, None),
        ("https://10.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.1.2.3"}, None),
        ("https://11.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,x"}, "http://p:1"),
    ],
)
def test_which_proxy_a_request_takes(url, environment, expected):
    """The scheme's own variable comes before all_proxy, and no_proxy before both."""
    assert proxies.proxy_for(url, environment) == expected


def test_a_proxy_is_shown_without_its_password():
    """Scheme, host and port are shown."""
    assert proxies.without_password(f"http://user:{SECRET}@[fe80::1]:3128/x") == "http://[fe80::1]:3128"
    assert proxies.without_password(f"http://user:{SECRET}@p:port") == "http://p"
