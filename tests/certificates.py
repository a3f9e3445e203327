"""A certificate authority for tests, made by openssl, and a TLS server in front of a plain one that wants to know its clients."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """`ca`: whom to trust. `server` and `client`: certificate and key in one file, both signed by it."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        self._folder = folder
        _openssl("req", "-x509", *KEY, "-days", "1", "-subj", "/CN=test", "-keyout", self._key, "-out", self.ca)
        self.server = self._signed("server", "subjectAltName=DNS:localhost")
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")

    def _signed(self, name: str, extension: str) -> Path:
        key, request, certificate = (self._folder / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(extension)
        _openssl("req", *KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signing = ["-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "1", "-extfile", extensions]
        _openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        both = self._folder / f"{name}.pem"
        both.write_text(certificate.read_text() + key.read_text())
        return both


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def tls_front(authority: Authority, port: int) -> Iterator[int]:
    """The port of a TLS server that hands everything on to `port`, for clients with a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def serve(raw: socket.socket) -> None:
        with (
            suppress(OSError),
            raw,
            context.wrap_socket(raw, server_side=True) as client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join(5)

    def accept() -> None:
        while not stopping.is_set():
            with suppress(OSError):
                raw, _ = listener.accept()
                threading.Thread(target=serve, args=(raw,), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
