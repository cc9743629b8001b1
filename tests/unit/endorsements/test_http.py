"""The bounded GET: proxies, TLS, redirects, limits."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from endorsement_support.kds import FakeKds, FakeProxy, Reply, dripping
from endorsement_support.pki import name
from pagegate.endorsements import Timeouts
from pagegate.endorsements.http import HttpClient, TransportError

QUICK = Timeouts(connect=2, read=1, attempt=5)


def http(**options: object) -> HttpClient:
    return HttpClient(QUICK, **({"proxy": ""} | options))  # type: ignore[arg-type]


@pytest.fixture
def server_tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server context for 127.0.0.1 and the CA file that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name("test"), name("test"), key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = tmp_path / "server.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    return context, pem


def test_get_when_answered_gives_status_headers_and_body(kds: FakeKds) -> None:
    kds.always = Reply(200, b"body", {"X-Test": "1"})
    answer = http().get(f"{kds.url}/x", limit=10)
    assert (answer.status, answer.headers["x-test"], answer.body) == (200, "1", b"body")


def test_get_when_exactly_at_the_limit_is_taken(kds: FakeKds) -> None:
    kds.always = Reply(200, bytes(100))
    assert len(http().get(f"{kds.url}/x", limit=100).body) == 100


def test_get_when_a_byte_over_the_limit_is_refused(kds: FakeKds) -> None:
    kds.always = Reply(200, bytes(101))
    with pytest.raises(TransportError, match="more than 100 bytes"):
        http().get(f"{kds.url}/x", limit=100)


def test_get_when_redirected_within_the_host_follows(kds: FakeKds) -> None:
    kds.faults["/a"].append(Reply(302, headers={"Location": "/b"}))
    kds.files["/b"] = b"there"
    assert http().get(f"{kds.url}/a", limit=10).body == b"there"


def test_get_when_redirected_elsewhere_refuses(kds: FakeKds) -> None:
    with FakeKds() as other:
        kds.faults["/a"].append(Reply(302, headers={"Location": f"{other.url}/b"}))
        with pytest.raises(TransportError, match="redirect to another host"):
            http().get(f"{kds.url}/a", limit=10)
        assert other.requests == []


def test_get_when_redirected_in_a_circle_stops(kds: FakeKds) -> None:
    kds.always = Reply(301, headers={"Location": "/a"})
    with pytest.raises(TransportError, match="more than 3 redirects"):
        http().get(f"{kds.url}/a", limit=10)
    assert len(kds.requests) == 4


def test_get_when_a_proxy_is_set_goes_through_it(kds: FakeKds) -> None:
    kds.files["/x"] = b"by proxy"
    with FakeProxy() as proxy:
        client = http(proxy=proxy.url.replace("//", "//user:secret@"))
        assert client.get(f"{kds.url}/x", limit=10).body == b"by proxy"
        client.close()
        assert proxy.seen == [("GET", f"{kds.url}/x", "Basic dXNlcjpzZWNyZXQ=")]


def test_get_when_the_environment_names_a_proxy_goes_through_it(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    kds.files["/x"] = b"by proxy"
    with FakeProxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        client = http(proxy=None)
        assert client.get(f"{kds.url}/x", limit=10).body == b"by proxy"
        client.close()
        assert [method for method, *_ in proxy.seen] == ["GET"]


def test_get_when_no_proxy_names_the_host_goes_straight(kds: FakeKds, monkeypatch: pytest.MonkeyPatch) -> None:
    kds.files["/x"] = b"straight"
    with FakeProxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert http(proxy=None).get(f"{kds.url}/x", limit=10).body == b"straight"
        assert proxy.seen == []


def test_get_when_tls_is_vouched_for_is_trusted(server_tls: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = server_tls
    with FakeKds(tls=context) as kds:
        kds.files["/x"] = b"secure"
        client = http(ca_file=ca_file)
        assert client.get(f"{kds.url}/x", limit=10).body == b"secure"
        client.close()


def test_get_when_tls_goes_through_a_proxy_is_tunnelled(server_tls: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = server_tls
    with FakeKds(tls=context) as kds, FakeProxy() as proxy:
        kds.files["/x"] = b"secure"
        client = http(ca_file=ca_file, proxy=proxy.url)
        assert client.get(f"{kds.url}/x", limit=10).body == b"secure"
        client.close()
        assert [method for method, *_ in proxy.seen] == ["CONNECT"]


def test_get_when_nobody_vouches_for_tls_refuses(server_tls: tuple[ssl.SSLContext, Path]) -> None:
    with FakeKds(tls=server_tls[0]) as kds:
        kds.files["/x"] = b"secure"
        with pytest.raises(TransportError, match=r"TLS.*ca_file"):
            http().get(f"{kds.url}/x", limit=10)
        assert kds.requests == []


def test_get_when_the_answer_drips_ends_in_the_time_given(kds: FakeKds) -> None:
    kds.always = dripping(0.02)
    with pytest.raises(TransportError, match=r"no complete answer within 0\.3 s"):
        http().get(f"{kds.url}/x", limit=1000, seconds=0.3)


def test_get_when_the_url_is_nonsense_is_a_transport_error() -> None:
    with pytest.raises(TransportError):
        http().get("http://[::1", limit=10)
