"""Files of the Hugging Face hub. `HF_ENDPOINT`, `HF_TOKEN`, a login of the hub's own command and `HF_HUB_OFFLINE` mean what they mean
there, because its own library reads them.
"""

import re

import httpx

from backends.errors import ModelFileUnusable
from backends.pulling.download import Wanted
from backends.pulling.source import Source

MEANINGS = {
    "RepoNotFound": "there is no such repository, or it is private: set HF_TOKEN to a token that may read it",
    "GatedRepo": "its owner wants a licence to be accepted: do that on the hub's page of it, and set HF_TOKEN to a token of that account",
    "EntryNotFound": "the repository has no such file",
    "RevisionNotFound": "the repository has no such revision",
    "DisabledRepo": "the hub has disabled it",
}


def wanted_of(source: Source) -> Wanted:
    """
    Raises:
        ModelFileUnusable: the hub's library is told to stay offline.
    """
    from huggingface_hub import constants, get_token, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise ModelFileUnusable(f"{source.shown} cannot be downloaded: HF_HUB_OFFLINE is set")
    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ModelFileUnusable(f"{source.shown} cannot be downloaded: HF_TOKEN has characters that no token has")
    return Wanted(
        hf_hub_url(source.where, source.file, revision=source.revision),
        source.shown,
        {"authorization": f"Bearer {token}"} if token else {},
        source.sha256,
        explain=explain,
        digest_of=digest_of,
    )


def explain(response: httpx.Response) -> str | None:
    words = MEANINGS.get(response.headers.get("x-error-code", ""))
    if words is None and response.status_code == 401:
        return MEANINGS["RepoNotFound"]
    return words


def digest_of(response: httpx.Response) -> str | None:
    """The hub tells the sha256 of large files as their ETag, before it redirects to where they lie."""
    for hop in (*response.history, response):
        etag = hop.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return str(etag)
    return None
