"""The App that a zygote is warmed with.

No `from __future__ import annotations` here: annotations that are text would not travel by value.
"""

from pydantic import BaseModel

from fal_notebook.app import App, endpoint

__all__ = ["Answer", "Question", "StandIn"]


class Question(BaseModel):
    """Input of the stand-in's endpoints."""

    number: int = 1
    text: str | None = None


class Answer(BaseModel):
    """Their output."""

    numbers: list[int]


class StandIn(App):
    """An App with one endpoint of each kind."""

    @endpoint("/")
    def compute(self, question: Question) -> Answer:
        """Answer on a slot's thread."""
        return Answer(numbers=[question.number])

    @endpoint("/inline")
    async def compute_inline(self, question: Question) -> Answer:
        """Answer on the loop."""
        return Answer(numbers=[question.number])
