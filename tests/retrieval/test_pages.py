import asyncio
import ipaddress
import socket
import zlib
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote

import pytest
from aiohttp import web

import retrieval.pages as pages_module
from retrieval.errors import PageRefused, PageUnavailable
from retrieval.pages import MAX_REDIRECTS, Pages, is_public, place_of

pytestmark = pytest.mark.anyio

MAX_BYTES = 200_000
ASKED: web.AppKey[list[str]] = web.AppKey("asked")
OVER: web.AppKey[asyncio.Event] = web.AppKey("over")


class Site(NamedTuple):
    port: int
    asked: list[str]
    """Paths, in the order they came in."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def pages(self, *urls: str, allow: tuple[str, ...] = ()) -> Pages:
        return Pages(urls, [f"127.0.0.1:{self.port}", *allow], max_bytes=MAX_BYTES)


async def answer(request: web.Request) -> web.StreamResponse:
    path, query = request.path, request.query
    request.app[ASKED].append(request.path_qs)
    if path == "/to":
        return web.Response(status=int(query.get("status", "302")), headers={"location": query["to"]})
    if path == "/nowhere":
        return web.Response(status=302)
    if path == "/hops":
        left = int(query["left"])
        return web.Response(text="there", status=200) if not left else _redirect(f"hops?left={left - 1}")
    if path == "/status":
        return web.Response(status=int(query["code"]), text="a word")
    if path == "/bomb":
        squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
        body = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(300)) + squeezer.flush()
        return web.Response(body=body, content_type="text/plain", headers={"content-encoding": "gzip"})
    if path == "/endless":
        stream = web.StreamResponse(headers={"content-type": "text/plain"})
        await stream.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await stream.write(b"lama " * 1000)
        return stream
    if path == "/cut":
        stream = web.StreamResponse(headers={"content-type": "text/plain", "content-length": "1000"})
        await stream.prepare(request)
        await stream.write(b"lama")
        assert request.transport is not None
        request.transport.close()
        return stream
    if path == "/silent":
        await request.app[OVER].wait()
    size = int(query.get("size", "4"))
    kind = query.get("kind", "text/html; charset=utf-8")
    return web.Response(body=b"lama"[:size].ljust(size, b"a"), headers={"content-type": kind})


def _redirect(to: str) -> web.Response:
    return web.Response(status=307, headers={"location": to})


async def started() -> tuple[web.AppRunner, Site]:
    app = web.Application()
    app[ASKED], app[OVER] = [], asyncio.Event()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    return runner, Site(listening.getsockname()[1], app[ASKED])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    runner, site = await started()
    yield site
    runner.app[OVER].set()
    await runner.cleanup()


@pytest.fixture
async def inner() -> AsyncIterator[Site]:
    """A machine of the private network that nobody has allowed."""
    runner, site = await started()
    yield site
    await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "kind", "extension"),
    [
        ("/page", "text/html", ".html"),
        ("/page.html", "text/html; charset=utf-8", ".html"),
        ("/page.HTML", "text/html", ".html"),
        ("/", "TEXT/HTML", ".html"),
        ("/page", "application/xhtml+xml", ".html"),
        ("/leaflet", "application/pdf", ".pdf"),
        ("/leaflet.pdf", "application/pdf", ".pdf"),
        ("/notes", "text/plain", ".txt"),
        ("/notes.md", "text/plain; charset=utf-8", ".md"),
        ("/table.csv", "text/plain", ".csv"),
        ("/table.tsv", "text/plain", ".tsv"),
        ("/run.sh", "text/plain", ".txt"),
        ("/notes", "text/markdown", ".md"),
        ("/table", "text/csv", ".csv"),
        ("/data", "application/json", ".json"),
    ],
)
async def test_a_page_is_named_by_its_address_and_by_what_it_is(
    site: Site, path: str, kind: str, extension: str
) -> None:
    url = site.url(f"{path}?kind={quote(kind)}")
    assert await site.pages().fetch(url) == (url + extension, b"lama")


async def test_the_address_is_the_name_where_it_says_what_it_is(site: Site) -> None:
    assert (await site.pages().fetch(site.url("/page.html"))).name == site.url("/page.html")
    assert (await site.pages().fetch(site.url("/page"))).name == site.url("/page.html")


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/zip", "video/mp4", "nonsense"])
async def test_what_cannot_be_read_is_not_taken(site: Site, kind: str) -> None:
    with pytest.raises(PageRefused, match="which is not read here"):
        await site.pages().fetch(site.url(f"/x?kind={quote(kind)}"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_inside_what_is_allowed_is_followed(site: Site, status: int) -> None:
    asked = site.url(f"/to?status={status}&to=/page.html")
    name, data = await site.pages().fetch(asked)
    assert data == b"lama"
    assert name.startswith(asked), "a page is called what the configuration calls it"
    assert site.asked[-1] == "/page.html"


async def test_a_page_of_another_host_that_is_allowed_by_name_and_port_is_read(site: Site, inner: Site) -> None:
    pages = site.pages(allow=(f"LocalHost:{inner.port}",))
    assert (await pages.fetch(site.url(f"/to?to={quote(inner.url('/x', 'localhost'))}"))).data == b"lama"
    assert inner.asked == ["/x"]


async def test_a_host_that_is_allowed_without_a_port_is_allowed_on_each(inner: Site) -> None:
    pages = Pages([], ["127.0.0.1"], max_bytes=MAX_BYTES)
    assert (await pages.fetch(inner.url("/x"))).data == b"lama"


FORBIDDEN = [
    "http://localhost:PORT/",
    "http://127.0.0.1:PORT/",
    "//127.0.0.1:PORT/",
    "HTTP://LOCALHOST:PORT/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::1]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[fe80::1%25lo]:PORT/",
    "http://[fd00::1]/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f.1:PORT/",
    "http://0x7f000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://017700000001:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.1:ALLOWED@localhost:PORT/",
    "http://127.0.0.1:ALLOWED@127.0.0.1:PORT/",
    "http://a@127.0.0.1:ALLOWED@localhost:PORT/",
    "http://127.0.0.1:ALLOWED\\@localhost:PORT/",
    "http://localhost:PORT\\@127.0.0.1:ALLOWED/",
    "http://localhost:PORT#@127.0.0.1:ALLOWED/",
    "http://localhost:PORT?@127.0.0.1:ALLOWED/",
    "http://127.0.0.1%2F@localhost:PORT/",
    "http://loc\talhost:PORT/",
    "file:///etc/passwd",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/",
    "javascript:alert(1)",
    "data:text/html,lama",
    "http://[",
    "http://h:99999/",
]


@pytest.mark.parametrize("everybody", [False, True], ids=["by name", "any public host"])
@pytest.mark.parametrize("target", FORBIDDEN)
async def test_no_page_brings_us_to_ask_a_machine_of_our_own_network(
    site: Site, inner: Site, target: str, everybody: bool
) -> None:
    target = target.replace("PORT", str(inner.port)).replace("ALLOWED", str(site.port))
    pages = site.pages(allow=("*",) if everybody else ())
    with pytest.raises((PageRefused, PageUnavailable)):
        await pages.fetch(site.url(f"/to?to={quote(target, safe='')}"))
    assert inner.asked == []
    assert len(site.asked) == 1


@pytest.mark.parametrize("target", [one for one in FORBIDDEN if one.startswith("http") and "ALLOWED" not in one])
async def test_an_address_of_the_configuration_is_not_private_either(inner: Site, target: str) -> None:
    url = target.replace("PORT", str(inner.port))
    with pytest.raises((PageRefused, PageUnavailable)):
        await Pages([url], [], max_bytes=MAX_BYTES).fetch(url)
    assert inner.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]"])
async def test_a_private_address_is_refused_and_the_words_say_what_to_do(host: str) -> None:
    url = f"http://{host}/"
    with pytest.raises(PageRefused, match="allow_hosts"):
        await Pages([url], [], max_bytes=MAX_BYTES).fetch(url)


async def test_a_host_that_is_not_named_is_refused(site: Site) -> None:
    with pytest.raises(PageRefused, match="allow_hosts"):
        await Pages(["https://example.org/"], ["*.example.org"], max_bytes=MAX_BYTES).fetch(site.url("/"))
    assert site.asked == []


async def test_another_port_of_an_allowed_place_is_refused(site: Site, inner: Site) -> None:
    with pytest.raises(PageRefused):
        await site.pages().fetch(inner.url("/"))
    assert inner.asked == []


async def test_redirects_are_followed_as_often_as_is_allowed(site: Site) -> None:
    assert (await site.pages().fetch(site.url(f"/hops?left={MAX_REDIRECTS}"))).data == b"there"


@pytest.mark.parametrize("path", [f"/hops?left={MAX_REDIRECTS + 1}", "/nowhere", "/to?to=", "/to?to=%3Fto%3D"])
async def test_redirects_come_to_an_end(site: Site, path: str) -> None:
    with pytest.raises(PageRefused, match=f"more than {MAX_REDIRECTS} times"):
        await site.pages().fetch(site.url(path))
    assert len(site.asked) == MAX_REDIRECTS + 1


async def test_a_page_is_as_large_as_is_allowed_and_no_larger(site: Site) -> None:
    page = await site.pages().fetch(site.url(f"/x?size={MAX_BYTES}"))
    assert len(page.data) == MAX_BYTES
    with pytest.raises(PageRefused, match=r"files\.max_mb"):
        await site.pages().fetch(site.url(f"/x?size={MAX_BYTES + 1}"))


@pytest.mark.parametrize("path", ["/endless", "/bomb"])
async def test_a_page_without_an_end_is_left(site: Site, path: str) -> None:
    with pytest.raises((PageRefused, PageUnavailable)):
        await site.pages().fetch(site.url(path))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 410, 414, 451])
async def test_a_page_that_is_not_there_is_refused(site: Site, status: int) -> None:
    with pytest.raises(PageRefused, match=str(status)):
        await site.pages().fetch(site.url(f"/status?code={status}"))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 204, 206, 300, 304])
async def test_a_page_that_may_be_there_again_is_not_available(site: Site, status: int) -> None:
    with pytest.raises(PageUnavailable, match=str(status)):
        await site.pages().fetch(site.url(f"/status?code={status}"))


async def test_a_page_that_is_cut_is_not_available(site: Site) -> None:
    with pytest.raises(PageUnavailable, match="does not answer"):
        await site.pages().fetch(site.url("/cut"))


async def test_a_page_that_never_answers_is_not_available(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "TOTAL_S", 0.2)
    with pytest.raises(PageUnavailable, match="does not answer"):
        await site.pages().fetch(site.url("/silent"))


async def test_nobody_at_a_port_is_not_available() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PageUnavailable, match="does not answer"):
        await Pages([], ["127.0.0.1"], max_bytes=MAX_BYTES).fetch(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.31.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2001:0:7f00:1::", False),
        ("2002:7f00:1::", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("fe80::1%lo", False),
        ("ff02::1", False),
    ],
)
def test_public_is_what_the_whole_internet_reaches(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://Wiki.Example.org/a", ("wiki.example.org", "wiki.example.org:80")),
        ("https://wiki.example.org", ("wiki.example.org", "wiki.example.org:443")),
        ("https://u:p@h:8443/", ("h", "h:8443")),
        ("http://[::1]:8080/", ("::1", "::1:8080")),
        ("http://h:99999/", ("", "")),
        ("http://h:x/", ("", "")),
        ("http://[", ("", "")),
    ],
)
def test_the_place_of_an_address(url: str, place: tuple[str, str]) -> None:
    assert place_of(url) == place
