"""What a runner is told: the descriptors it is born with and the settings it reads from a pipe.

Settings never travel by argument or environment: those of a fork are its zygote's, and both can be read by others.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Descriptors", "Settings"]


class Descriptors(NamedTuple):
    """Numbers of the descriptors made by the host, in the order in which they are passed."""

    gate: int
    """Read end: one byte says that the runner may begin."""
    control: int
    """Write end: one JSON object a line."""
    settings: int
    """Read end: one JSON object, to its end."""
    out: int
    err: int
    log: int
    """Write end: frames of attributed lines."""
    app: int
    """Listening unix socket of the App's HTTP server."""
    ctl: int
    """Listening unix socket of the call list, cancel, drain and stacks."""

    @classmethod
    def from_json(cls, text: str) -> Descriptors:
        """Read the form in which a spawned runner finds them in its environment."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Settings:
    """A start order as the runner sees it; fields it does not know are ignored."""

    runner_id: str
    app: str
    revision: str
    payload: str
    """Path of the bundle's pickle."""
    manifest_json: str
    own: str
    """Folder that only this runner writes."""
    work: str
    """Working folder."""
    host_pid: int
    runtime_root: str = ""
    owner: str = ""
    epoch: int = 0
    spec_json: str = "{}"
    buffers: tuple[str, ...] = ()
    max_multiplexing: int = 1
    grace_s: float = 5.0
    machine_type: str = "S"
    cpu: float = 1.0
    memory_mb: int = 0
    persistent_dir: str = ""
    devices: tuple[str, ...] = ()
    """GPUs by uuid: all that it may see."""
    device_share: int = 100
    """Hundredths of each that are its own."""
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: bytes) -> Settings:
        """Read what came through the settings pipe."""
        found: dict[str, Any] = json.loads(text)
        known = {item.name for item in dataclasses.fields(cls)}
        values = {name: value for name, value in found.items() if name in known and value is not None}
        values["buffers"] = tuple(values.get("buffers", ()))
        values["devices"] = tuple(values.get("devices", ()))
        return cls(**values)

    @property
    def site(self) -> str:
        """Folder into which `pip install` of this runner goes."""
        return os.path.join(self.own, "site")  # noqa: PTH118 (pathlib costs more than it gives here)
