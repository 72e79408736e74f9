"""What a second of each machine type costs, from `prices.toml` in the data folder; without it all is free.

currency = "USD"

[per_second]
XS = 0.00001
"GPU-H100" = 0.0011
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from fal_notebook.errors import UsageError

__all__ = ["Prices", "load_prices"]


@dataclass(frozen=True)
class Prices:
    """The price table."""

    per_second: dict[str, float] = field(default_factory=dict)
    currency: str = "USD"


def load_prices(file: Path) -> Prices:
    """Return the table of a file, an empty one where there is none. Raises: UsageError when it cannot be read."""
    if not file.exists():
        return Prices()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        table = content.get("per_second", {})
        prices = {str(name): float(price) for name, price in table.items()}
    except (
        OSError,
        UnicodeDecodeError,
        tomllib.TOMLDecodeError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise UsageError(f"{file} cannot be read: {error}.", code="usage.prices_file") from error
    if any(price < 0 for price in prices.values()):
        raise UsageError(f"{file}: a price cannot be less than 0.", code="usage.prices_file")
    return Prices(prices, str(content.get("currency", "USD")))
