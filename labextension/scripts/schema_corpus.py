"""Write `tests/corpus.json`: OpenAPI documents that pydantic and FastAPI make of typical endpoint inputs.

The form's modules are tested against it; `--check` only compares.
"""

from __future__ import annotations

import json
import sys
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from fastapi import FastAPI
from pydantic import BaseModel, Field, create_model

__all__ = ["TARGET", "render"]

TARGET = Path(__file__).resolve().parent.parent / "tests" / "corpus.json"


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Mask(BaseModel):
    model: Literal["landscape", "portrait"] = "landscape"
    threshold: float = Field(0.5, ge=0, le=1)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = []


class Leaf(BaseModel):
    name: str = ""
    children: list[Leaf] = []


Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007  # as users of older code write it

FIELDS: dict[str, tuple[Any, Any]] = {
    "text": (str, ...),
    "short_text": (str, Field("a", min_length=1, max_length=3)),
    "bounded_integer": (int, Field(25, ge=1, le=99)),
    "open_float": (float, Field(0.5, gt=0)),
    "optional_integer": (int | None, None),
    "optional_float_with_value": (float | None, 1.5),
    "switch": (bool, False),
    "optional_switch": (bool | None, None),
    "literal": (Literal["plain", "loud"], "plain"),
    "enum": (Colour, Colour.RED),
    "optional_literal": (Literal["a", "b"] | None, None),
    "model": (Mask, Mask()),
    "optional_model": (Mask | None, None),
    "numbers": (list[float], Field(..., min_length=4, max_length=4)),
    "words": (list[str], Field([], max_length=4)),
    "models": (list[Mask], []),
    "mapping": (dict[str, int], {}),
    "tagged_union": (Pet, ...),
    "plain_union": (int | str, 1),
    "moment": (datetime, ...),
    "day": (date, date(2026, 1, 2)),
    "pair": (tuple[int, str], (1, "a")),
    "anything": (Any, None),
    "recursive": (Leaf, Leaf()),
}


def _document(name: str, field: tuple[Any, Any]) -> dict[str, Any]:
    model = create_model("Input", **{name: field})  # type: ignore[call-overload]  # fields from the table
    app = FastAPI(title=name)

    def run(inp: Any) -> None: ...

    run.__annotations__ = {"inp": model, "return": None}
    app.post("/")(run)
    return app.openapi()


def render() -> str:
    """Return the corpus as JSON text."""
    return json.dumps({name: _document(name, field) for name, field in FIELDS.items()}, indent=1) + "\n"


def main() -> int:
    """Write the file, or with --check say whether it is current."""
    text = render()
    if "--check" in sys.argv:
        return 0 if TARGET.exists() and TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
