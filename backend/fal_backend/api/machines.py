"""Machine types and nodes for people, under `/api/v1`; the catalogue's changes are kept in its file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from fastapi import FastAPI

from fal_backend.api.control import PREFIX, Who
from fal_backend.services.devices import Devices
from fal_backend.services.simulation import Simulation
from fal_notebook.wire import MachineType
from fal_notebook.wire_machines import MachineRequest, NodeInfo, Simulated, SimulateRequest

__all__ = ["CatalogueFile", "machine_routes"]


class CatalogueFile(Protocol):
    """Where the machine types of this site are kept."""

    def put(self, machine: MachineType) -> None:
        """Add or change a type. Raises: UsageError."""
        ...

    def drop(self, name: str) -> None:
        """Take a type out. Raises: NotFoundError, MachineError."""
        ...


def machine_routes(
    file: CatalogueFile, devices: Devices, simulation: Simulation
) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""

    async def put_machine(name: str, body: MachineRequest, who: Who) -> MachineType:
        """Add a machine type, or change one."""
        machine = MachineType(name=name, **body.model_dump())
        await asyncio.to_thread(file.put, machine)
        return machine

    async def drop_machine(name: str, who: Who) -> dict[str, str]:
        """Take a machine type of this site out again."""
        await asyncio.to_thread(file.drop, name)
        return {"name": name}

    async def list_nodes(who: Who) -> dict[str, list[NodeInfo]]:
        """List nodes, their devices and who holds them."""
        return {"nodes": devices.listed(who.account)}

    async def release(name: str, uuid: str, who: Who) -> dict[str, str]:
        """Let a device be leased again that was held back."""
        await devices.release(name, uuid)
        return {"uuid": uuid}

    async def simulate(alias: str, body: SimulateRequest, who: Who) -> Simulated:
        """Replay an app's traffic under its settings and under others."""
        return await simulation.compare(who.account, alias, body)

    def install(app: FastAPI) -> None:
        routes = (
            ("PUT", "/machines/{name}", put_machine),
            ("DELETE", "/machines/{name}", drop_machine),
            ("GET", "/nodes", list_nodes),
            ("POST", "/nodes/{name}/devices/{uuid}/release", release),
            ("POST", "/apps/{alias}/simulate", simulate),
        )
        for method, path, handler in routes:
            app.add_api_route(PREFIX + path, handler, methods=[method], name=handler.__name__)

    return install
