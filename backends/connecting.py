"""From a provider's settings to a transport: which client, which trust, which way."""

import ssl
from urllib.parse import urlsplit

from backends.errors import BackendMisconfigured
from backends.settings import OpenAISettings, TlsSettings
from backends.transport import Transport
from backends.transport_aiohttp import AiohttpTransport
from backends.transport_http1 import Http1Transport


def connect(settings: OpenAISettings) -> Transport:
    """To the provider's origin; paths are the relay's.

    Raises:
        BackendMisconfigured: a file of `tls` is missing or no PEM.
    """
    url = urlsplit(settings.base_url)
    origin = f"{url.scheme}://{url.netloc}"
    tls = _context(settings.name, settings.tls) if url.scheme == "https" else None
    if settings.proxy is not None:
        return AiohttpTransport(origin, tls=tls, proxy=settings.proxy)
    return Http1Transport(origin, tls=tls)


def _context(backend: str, settings: TlsSettings) -> ssl.SSLContext | None:
    if settings == TlsSettings():
        return None  # the system's trust store, read at the first connection
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.client_cert_file is not None:
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file)
    except (OSError, ssl.SSLError) as exc:
        reason = exc.strerror or str(exc)
        raise BackendMisconfigured(
            f"backend '{backend}': a file of `tls` cannot be used: {reason}; it must be PEM"
        ) from None
    return context
