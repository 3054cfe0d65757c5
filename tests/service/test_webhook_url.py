"""Addresses of webhooks: the list of tricks, and what an answer to each must be."""

import base64
import re

import pytest

from service.errors import Invalid
from service.event_types import EVENT_TYPES, matches, unknown_patterns
from service.webhook_url import checked_url
from service.webhook_wire import signature
from tests.house import sources

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://hooks.example.com", "https://hooks.example.com/"),
        ("https://Hooks.Example.COM./a/b?c=d&e=%2F", "https://hooks.example.com/a/b?c=d&e=%2F"),
        ("https://hooks.example.com:443/a", "https://hooks.example.com/a"),
        ("https://hooks.example.com:8443/a", "https://hooks.example.com:8443/a"),
        ("https://93.184.216.34/a", "https://93.184.216.34/a"),
        ("https://[2606:2800:220:1::1]/a", "https://[2606:2800:220:1::1]/a"),
        ("https://xn--bcher-kva.example.com/", "https://xn--bcher-kva.example.com/"),
    ],
)
def test_an_address_of_the_public_internet_is_kept_in_one_form(text: str, kept: str) -> None:
    assert checked_url(text, loopback=False) == kept == checked_url(kept, loopback=False)


TRICKS = (
    *("http://example.com/", "HTTP://example.com", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/"),
    *("", "example.com", "//example.com", "https:example.com", "https:/example.com", "https:///example.com"),
    *("https://", "https://:443/", "https://?a", "javascript:alert(1)", "data:,a", "\\\\host\\share", "C:\\a"),
    # this machine and inner networks, in all clothes
    *("https://localhost/", "https://LOCALHOST./", "https://a.localhost/", "https://127.0.0.1/", "https://127.1/"),
    *("https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://0/"),
    *("https://127.0.0.1./", "https://0.0.0.0/", "https://255.255.255.255/", "https://[::]/", "https://[::1]/"),
    *("https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.0.1/", "https://100.64.0.1/", "https://198.18.0.1/"),
    *("https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[fc00::1]/"),
    *("https://[::ffff:127.0.0.1]/", "https://[::ffff:a9fe:a9fe]/", "https://[::127.0.0.1]/", "https://[fec0::1]/"),
    *("https://[::ffff:0:127.0.0.1]/", "https://[64:ff9b::a9fe:a9fe]/", "https://[2002:7f00:1::]/", "https://224.0.0.1/"),
    *("https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://[::1", "https://::1/", "https://[]/"),
    *("https://simpo-api/", "https://simpo-api.simpo.svc/", "https://metadata.google.internal/", "https://printer.local/"),
    # read in two ways
    *("https://example.com@127.0.0.1/", "https://user:pw@example.com/", "https://127.0.0.1#@example.com/"),
    *("https://example.com\\@127.0.0.1/", "https://127.0.0.1\\.example.com/", "https://example.com#", "https://a.com/#b"),
    *("https://example.com:80\uff20evil/", "https://example.com:0443x/", "https://example.com:/", "https://a.com:4430/"),
    *("https://example.com:22/", "https://example.com:99999/", "https://example.com:-1/", "https://example.com:0/"),
    *(" https://example.com/", "https://example.com/ ", "https://exam ple.com/", "https://example.com/a b"),
    *("https://example.com/\r\nhost: a", "https://example.com/\n", "https://example.com\x00.evil.com/", "https://a.com/\t"),
    *("https://%6c%6fcalhost/", "https://example.com%2f@127.0.0.1/", "https://%31%32%37.0.0.1/", "https://a%00.com/"),
    *("https://\uff11\uff12\uff17.0.0.1/", "https://\u24d4xample.com/", "https://example\u3002com/", "https://ex\u00e4mple.com/"),
    *("https://a..com/", "https://-a.com/", "https://a-.com/", "https://.com/", "https://a_b.com/", "https://*.a.com/"),
    *("https://" + "a" * 64 + ".com/", "https://" + "a." * 127 + "com/", "https://a.com/" + "a" * 2000),
)


@pytest.mark.parametrize("text", TRICKS)
def test_whatever_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        checked_url(text, loopback=False)
    assert [pointer for pointer, _ in caught.value.errors] == ["/url"]


def test_this_machine_is_allowed_where_a_setting_says_so_and_nothing_else_by_http() -> None:
    for url in ("http://127.0.0.1:9000/a", "http://localhost:1/", "http://[::1]:8080/", "https://127.0.0.1:4443/"):
        assert checked_url(url, loopback=True) == url
        with pytest.raises(Invalid):
            checked_url(url, loopback=False)
    for url in ("http://example.com/", "http://10.0.0.1/", "https://10.0.0.1/", "http://127.0.0.1:99999/", "http://0.0.0.0/"):
        with pytest.raises(Invalid):
            checked_url(url, loopback=True)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its reference implementation."""
    secret, id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    body = b'{"test": 2432232314}'
    assert signature(secret, id, 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    other = "whsec_" + base64.b64encode(b"another").decode()
    assert len({signature(other, id, 1, body), signature(secret, id, 1, body), signature(secret, id, 2, body)}) == 3


def test_patterns_of_types() -> None:
    assert matches(["job.succeeded"], "job.succeeded") and not matches(["job.succeeded"], "job.failed")
    assert matches(["trial.*"], "trial.rung") and not matches(["trial.*"], "job.failed")
    assert matches(["*"], "job.failed")
    assert unknown_patterns(["*", "job.*", "job.succeeded", "gate.passed"]) == []
    wrong = ["job.suceeded", "jobs.*", "job", "**", "*.failed", "job.*.a", "", "webhook.test", "webhook.*"]
    assert unknown_patterns(wrong) == wrong


def test_every_type_of_event_in_the_source_is_in_the_list() -> None:
    """`append(...)` is how events and journal records are made."""
    call = re.compile(r'\bappend\(\s*(?:session,\s*[\w.()]+,\s*)?"([a-z]+\.[a-z_]+)"')
    found = {kind for source in sources("service", "sweeps") for kind in call.findall(source.text)}
    assert len(found) > 40
    assert found - set(EVENT_TYPES) == set()
