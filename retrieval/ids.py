"""Names of things in a collection that nobody gave an id: the same thing has the same one on every host."""

import hashlib


def declared_id(name: str) -> str:
    """Of a collection of the configuration."""
    return f"vs_{_digest('collection', name)}"


def source_id(collection: str, name: str) -> str:
    """Of a path or a page in a collection with this public id."""
    return f"file-{_digest('source', collection, name)}"


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()[:24]
