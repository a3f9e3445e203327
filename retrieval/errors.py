"""What can go wrong with documents and searches. Facts only; `gateway/errors.py` turns them into HTTP."""


class RetrievalError(Exception):
    """Base of all failures of collections."""


class CollectionNotReady(RetrievalError):
    """Nothing of it is indexed yet."""

    def __init__(self, collection: str, reason: str) -> None:
        super().__init__(f"collection '{collection}' is not ready yet: {reason}")
        self.collection = collection


class DocumentUnreadable(RetrievalError):
    """One file cannot be turned into text; the others are not affected.

    Args:
        kind: it is of a kind that is not read at all.
    """

    def __init__(self, message: str, *, kind: bool = False) -> None:
        super().__init__(message)
        self.kind = kind


class PageRefused(RetrievalError):
    """A web page that must not, or cannot, be fetched."""


class PageUnavailable(RetrievalError):
    """A web page that does not answer now; what it said before is still found."""


class FilterInvalid(RetrievalError):
    """A filter over attributes that says nothing."""

    def __init__(self, message: str, *, param: str = "filters") -> None:
        super().__init__(message)
        self.param = param


class Overtaken(RetrievalError):
    """A member has been claimed anew, changed or removed while it was built."""

    def __init__(self, member: int) -> None:
        super().__init__(f"member {member} has changed while it was built")


class Gone(RetrievalError):
    """A collection or a file that was there a moment ago."""

    def __init__(self, kind: str, id_: str | None = None) -> None:
        named = f" '{id_[:200]}'" if id_ is not None else ""
        super().__init__(f"there is no such {kind}{named} any more")


class RoomExceeded(RetrievalError):
    """The files of one owner together would be more than they may be."""


class CursorUnknown(RetrievalError):
    """A list is to go on behind something that it does not have."""

    def __init__(self, id_: str, *, param: str) -> None:
        super().__init__(f"'{param}' names nothing in this list: '{id_[:200]}'; begin anew without it")
        self.param = param


class AlreadyDone(RetrievalError):
    """What should be stopped has ended."""


class EmbeddingFailed(RetrievalError):
    """The embedding backend answered something that is not one vector per text."""


class TokensUndecodable(RetrievalError):
    """Token ids came in, and the encoding that made them is not available offline, or does not know them."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param
