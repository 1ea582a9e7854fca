"""Certificates are checked, and answers over TLS are like others."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen_asgi.errors import UpstreamTruncated, UpstreamUnreachable
from qwen_asgi.transports import httpx as httpx_lane
from tests.transports.exchanges import Lane, call, check_healthy, outcome, read
from tests.transports.test_cancellation import HANDSHAKE
from tests.transports.test_framing import WHOLE, spread
from tests.transports.torture import (
    CHUNKED_HEAD,
    Do,
    Flood,
    ReadBody,
    TortureServer,
    answer,
    chunk,
    chunked,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates"),
]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and for some hosts `<host>.pem`, each with its key in it."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca = ["-x509", "-days", "2", "-subj", "/CN=Torture CA", "-keyout", "ca.key", "-out", "ca.pem"]
    ca += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("req", *key, *ca)
    for host, days in (("localhost", "2"), ("other.example", "2"), ("expired", "-1")):
        name = "localhost" if host == "expired" else host
        # Python 3.13 asks for the identifiers too.
        identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        (folder / "names").write_text(f"subjectAltName=DNS:{name}\n{identifiers}")
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", "key", "-out", "request")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", "request", "-out", "cert", "-days", days, *signed)
        (folder / f"{host}.pem").write_text(
            (folder / "key").read_text() + (folder / "cert").read_text()
        )
    return folder


@contextmanager
def serving(certificates: Path, host: str = "localhost") -> Iterator[TortureServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{host}.pem")
    with TortureServer(context).running() as server:
        yield server
        seen = Counter(request.body for request in server.requests if request.body)
        assert not [body for body, times in seen.items() if times > 1]


@pytest.fixture
def trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both lanes trust the certificates."""
    ca = certificates / "ca.pem"
    # The direct lane asks the system, and so OpenSSL, what is trusted.
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    # The httpx lane has certificates of its own, and reads nothing from outside.
    context = ssl.create_default_context(cafile=str(ca))
    monkeypatch.setattr(httpx_lane, "_tls", lambda: context)


@pytest.fixture
def secure(trusted: None, certificates: Path, lane: Lane) -> Iterator[TortureServer]:
    with serving(certificates) as server:
        yield server


@pytest.mark.parametrize("host", ["localhost", "other.example", "expired"])
async def test_a_server_that_is_not_trusted_is_not_spoken_to(
    lane: Lane, certificates: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = lane(max_connections=1)
    with serving(certificates, host) as server:
        for _ in range(3):
            got = await outcome(transport, call(server.url))
            assert got.error is UpstreamUnreachable
            assert "certificate is not valid" in got.message
        assert not server.requests
        await transport.aclose()


@pytest.mark.parametrize("host", ["other.example", "expired"])
async def test_a_certificate_of_a_trusted_authority_must_be_this_host_s_and_of_today(
    trusted: None, lane: Lane, certificates: Path, host: str
) -> None:
    transport = lane(max_connections=1)
    with serving(certificates, host) as server:
        for _ in range(3):
            got = await outcome(transport, call(server.url))
            assert got.error is UpstreamUnreachable
            assert "certificate is not valid" in got.message
            # It may stand in a client's answer.
            assert "localhost" not in got.message
        assert not server.requests
        await transport.aclose()


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_is_read_and_its_connection_used_again(
    lane: Lane, secure: TortureServer, name: str
) -> None:
    data, body = WHOLE[name]
    transport = lane()
    for steps in ([data], spread(data, len(data) // 2), spread(data, *range(1, len(data), 7))):
        secure.then(*steps)
        got = await outcome(transport, call(secure.url))
        assert (got.body, got.error, got.ends_by_close) == (body, None, False)
    await check_healthy(transport, secure)
    assert len(secure.visits) == 1
    await transport.aclose()
    await secure.until(lambda: secure.open == 0)


async def test_large_bodies_go_both_ways(lane: Lane, secure: TortureServer) -> None:
    transport = lane()
    body = bytes(range(256)) * 16_384
    secure.then(Do.EARLY, ReadBody(), chunked(*[body[:65_536]] * 64))
    got = await outcome(transport, call(secure.url, size=8_000_000))
    assert got.error is None
    assert got.body == body[:65_536] * 64
    await check_healthy(transport, secure)
    assert len(secure.visits) == 1
    await transport.aclose()


async def test_who_does_not_read_is_not_sent_more_than_fits(
    lane: Lane, secure: TortureServer
) -> None:
    transport = lane()
    piece = chunk(b"x" * 65_536)
    secure.then(CHUNKED_HEAD, Flood(piece, 512), b"0\r\n\r\n")
    async with transport.open(call(secure.url), within=5) as response:
        before = -1
        while secure.visits[0].written > before:
            before = secure.visits[0].written
            await asyncio.sleep(0.1)
        assert before < 16 * 1024 * 1024
        assert len(await read(response)) == 512 * 65_536
    await transport.aclose()


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
async def test_an_answer_that_breaks_off_is_truncated(
    lane: Lane, secure: TortureServer, end: Do
) -> None:
    transport = lane(max_connections=1)
    for data in (answer(b"hello"), chunked(b"hello")):
        for cut in (0, 10, len(data) - 3, len(data) - 1):
            secure.then(data[:cut], end) if cut else secure.then(end)
            got = await outcome(transport, call(secure.url))
            assert got.error is UpstreamTruncated
        await check_healthy(transport, secure)
    await transport.aclose()


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET], ids=["closed", "reset"])
async def test_a_connection_that_was_closed_while_idle_is_not_used(
    lane: Lane, secure: TortureServer, end: Do
) -> None:
    transport = lane(max_connections=1)
    for pause in (0.0, 0.02):
        secure.then(answer(b"hello"), pause, end)
        assert (await outcome(transport, call(secure.url))).body == b"hello"
        await secure.until(lambda: secure.open == 0)
        await asyncio.sleep(0.002)
        await check_healthy(transport, secure)
    await transport.aclose()


async def test_a_request_may_be_cancelled_at_any_moment(lane: Lane, secure: TortureServer) -> None:
    if not lane.is_direct:
        pytest.skip(HANDSHAKE)
    transport = lane(max_connections=2)
    for number in range(60):
        secure.default = (answer(), Do.CLOSE) if number % 2 else (CHUNKED_HEAD, Do.WAIT)
        task = asyncio.create_task(outcome(transport, call(secure.url)))
        for _ in range(number):
            await asyncio.sleep(0)
        if number % 3 == 0:
            await asyncio.sleep(number * 0.0001)
        task.cancel()
        await asyncio.wait([task])
    await secure.until(lambda: secure.open == 0, within=0.5)
    await check_healthy(transport, secure)
    await transport.aclose()
    await secure.until(lambda: secure.open == 0)


async def test_a_server_without_tls_is_unreachable_by_an_https_address(
    lane: Lane, torture: TortureServer
) -> None:
    transport = lane(max_connections=1)
    url = torture.url.replace("http:", "https:")
    for greeting in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"hello", Do.CLOSE, Do.RESET):
        torture.greeting = (greeting, 0.02, Do.CLOSE)
        got = await outcome(transport, call(url), head=2)
        assert got.error is UpstreamUnreachable, greeting
    torture.greeting = ()
    assert not torture.requests
    await check_healthy(transport, torture)
