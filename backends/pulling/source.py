"""What `hf://…`, `https://…` and `file:…` mean. Pure."""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from backends.errors import ModelFileUnusable

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf$")
MOST_PARTS = 999


class Source(NamedTuple):
    """One GGUF file somewhere."""

    kind: str
    """`hub`, `url` or `file`."""
    where: str
    """An address, a path, or `owner/repo`."""
    file: str = ""
    """In the hub's repository."""
    revision: str = "main"
    sha256: str | None = None
    """Of the file, in hex, where the source pins it."""

    @property
    def name(self) -> str:
        """What the file is called where it comes from."""
        if self.kind == "hub":
            return PurePosixPath(self.file).name
        return PurePosixPath(unquote(urlsplit(self.where).path) if self.kind == "url" else self.where).name

    @property
    def shown(self) -> str:
        """For people: without passwords, and without queries, which may hold signatures."""
        if self.kind == "hub":
            at = "" if self.revision == "main" else f"@{self.revision}"
            return f"hf://{self.where}/{self.file}{at}"
        if self.kind == "file":
            return f"file:{self.where}"
        url = urlsplit(self.where)
        port = f":{url.port}" if url.port else ""
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return f"{url.scheme}://{host}{port}{url.path}"

    @property
    def is_secret(self) -> bool:
        """It may hold a password or a signature."""
        return self.kind == "url" and bool(urlsplit(self.where).query or "@" in urlsplit(self.where).netloc)

    @property
    def advice(self) -> str:
        """How to pull it, as far as that may be shown."""
        if self.is_secret:
            return "`chasqui models pull` with the address as the configuration has it, in quotes"
        pin = f"#sha256={self.sha256}" if self.sha256 else ""
        return f"`chasqui models pull {self.shown}{pin}`"

    @property
    def key(self) -> str:
        """The same for the same source; tells nothing of what is secret in it."""
        return hashlib.sha256("\n".join((self.kind, self.where, self.file, self.revision)).encode()).hexdigest()

    def parts(self) -> list["Source"]:
        """Itself, or all files of a model that is split into several, in order; only whole sets are worth anything."""
        split = PART.fullmatch(self.name)
        if split is None:
            return [self]
        count = int(split["count"])
        if not 1 <= count <= MOST_PARTS:
            raise ModelFileUnusable(f"{self.shown} says that it is one of {count} files")
        names = [f"{split['stem']}-{number:05d}-of-{split['count']}.gguf" for number in range(1, count + 1)]
        return [self if name == self.name else self._beside(name) for name in names]

    def _beside(self, name: str) -> "Source":
        if self.kind == "hub":
            return self._replace(file=str(PurePosixPath(self.file).with_name(name)), sha256=None)
        if self.kind == "file":
            return self._replace(where=str(Path(self.where).with_name(name)), sha256=None)
        url = urlsplit(self.where)
        return self._replace(where=url._replace(path=url.path.rpartition("/")[0] + f"/{name}").geturl(), sha256=None)


def is_source(text: str) -> bool:
    """Whether it names a place elsewhere, and not a path."""
    return text.startswith(("hf://", "https://", "http://"))


def parse_source(text: str) -> Source:
    """
    Raises:
        ModelFileUnusable: none of the forms that are known; the message shows them.
    """
    place, _, fragment = text.strip().partition("#")
    sha256 = _digest(fragment, text) if fragment else None
    if re.match(r"(hf|https?):(?!//)", place):
        raise _refused("behind the colon of an address stand two slashes")
    if place.startswith("hf://"):
        source = _hub(place.removeprefix("hf://"), text)._replace(sha256=sha256)
    elif place.startswith(("https://", "http://")):
        try:
            host, _ = urlsplit(place).hostname, urlsplit(place).port
        except ValueError:
            host = None
        if not host or not place.isascii() or not place.isprintable() or " " in place:
            raise _refused("it is no address")
        source = Source("url", place, sha256=sha256)
    elif place.startswith("file:") or "://" not in place:
        path = Path(place.removeprefix("file://").removeprefix("file:")).expanduser()
        source = Source("file", str(path.absolute()), sha256=sha256)
    else:
        raise _refused(f"'{place.partition('://')[0]}://' is not known")
    if not NAME.fullmatch(source.name):
        raise _refused(
            f"its file is called '{source.name[:100]}', and not like a GGUF file (letters, digits, . _ -, and .gguf)"
        )
    return source


def _hub(place: str, text: str) -> Source:
    path, at, revision = place.partition("@")
    owner, _, rest = path.partition("/")
    repository, _, file = rest.partition("/")
    pieces = (owner, repository, *file.split("/"), *(revision.split("/") if at else ()))
    if not all(re.fullmatch(r"[A-Za-z0-9._+-]+", piece) and piece.strip(".") for piece in pieces):
        raise _refused("it names no file in a repository of the hub")
    return Source("hub", f"{owner}/{repository}", file, revision if at else "main")


def _digest(fragment: str, text: str) -> str:
    label, _, digest = fragment.partition("=")
    if label != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise _refused("behind # stands sha256= and 64 hexadecimal digits")
    return digest.lower()


def _refused(why: str) -> ModelFileUnusable:
    """The text itself may hold a password, and is not repeated."""
    return ModelFileUnusable(
        f"the source cannot be used: {why}. Sources are hf://owner/repo/file.gguf[@revision], https://host/file.gguf[#sha256=…] "
        "and file:/path/file.gguf"
    )
