"""What people say of an answer: stars and words, by the key that asked for it."""

from sqlalchemy import BigInteger, Column, Table
from sqlmodel import Field, SQLModel


class FeedbackRow(SQLModel, table=True):
    __tablename__ = "feedback"

    id: str = Field(primary_key=True)
    """The request's."""
    key: str = Field(index=True)
    model: str
    stars: int
    """1 to 5."""
    words: str
    at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    """When it was last said, Unix milliseconds."""


feedback: Table = FeedbackRow.__table__  # type: ignore[attr-defined]
