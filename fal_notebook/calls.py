"""Call an app from code: `fal.call(Digits, {...})`, `fal.stream("writer", {...})`.

Rules: a class means the temporary app that this process made of it last, else the app deployed under its
name; the key is added here and seen nowhere; an answer of 400 or more is raised with the app's own words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fal_notebook import sse
from fal_notebook.client import Client, connect
from fal_notebook.control import AsyncClient
from fal_notebook.errors import AppException, NotFoundError
from fal_notebook.loop import Feed

__all__ = ["TEMPORARY", "call", "stream"]

TEMPORARY: dict[str, str] = {}
"""Class name -> alias of the temporary app that this process made of it last."""
TICK_S = 0.5


def call(app: Any, arguments: Any = None, *, path: str = "/", timeout_s: float = 600.0) -> Any:
    """Call an endpoint and return its answer, decoded when it is JSON.

    app is a class, an app's name, or `owner/name`. Raises: AppException with the app's answer,
    NotFoundError, BackendError.
    """
    client = _client()
    answer = client.call(
        _endpoint(client, app), {} if arguments is None else arguments, path=path, timeout_s=timeout_s
    )
    _checked(answer.status_code, answer.content, app)
    return _decoded(answer.content, answer.headers.get("content-type", ""))


def stream(app: Any, arguments: Any = None, *, path: str = "/stream") -> Iterator[Any]:
    """Yield a streaming endpoint's server-sent events as they come; closing the iterator ends the call."""
    client = _client()
    endpoint = _endpoint(client, app)
    feed: Feed[tuple[Any]] = Feed(client.loop)
    with feed:
        feed.follow("call", _events(client.core, endpoint, {} if arguments is None else arguments, path, app))
        while True:
            is_open = feed.follows("call")
            item = feed.take(TICK_S if is_open else 0)
            if item is not None:
                yield item[0]
            elif not is_open:
                return


async def _events(
    core: AsyncClient, endpoint: str, arguments: Any, path: str, app: Any
) -> AsyncIterator[tuple[Any]]:
    decoder = sse.Decoder()
    async with core.open_call(endpoint, arguments, path=path) as answer:
        if answer.status_code >= 400:
            _checked(answer.status_code, await answer.aread(), app)
        async for chunk in answer.aiter_bytes():
            for event in decoder.feed(chunk):
                yield (_decoded(event.data.encode(), "application/json"),)


def _client() -> Client:
    return connect()


def _endpoint(client: Client, app: Any) -> str:
    name = (
        app
        if isinstance(app, str)
        else TEMPORARY.get(app.__name__) or str(getattr(app, "app_name", None) or app.__name__)
    )
    return name if "/" in name else f"{client.owner}/{name}"


def _checked(status: int, content: bytes, app: Any) -> None:
    if status < 400:
        return
    detail = _detail(content)
    name = app if isinstance(app, str) else app.__name__
    if status == 404 and "Application" in detail:
        raise NotFoundError(detail, fix=f"Run the cell of `{name}`, or deploy it.")
    raise AppException(f"{name} answered {status}: {detail}", status)


def _detail(content: bytes) -> str:
    try:
        found = json.loads(content)
    except ValueError:
        return content[:2000].decode("utf-8", "replace")
    detail = found.get("detail", found) if isinstance(found, dict) else found
    return detail if isinstance(detail, str) else json.dumps(detail)


def _decoded(content: bytes, kind: str) -> Any:
    if "json" not in kind:
        return content.decode("utf-8", "replace") if kind.startswith("text/") else content
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")
