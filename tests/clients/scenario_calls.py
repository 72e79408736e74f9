"""What the scenarios' users write with fal's Python client, one function a case; prints one JSON document."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import fal_client
import fal_client.client

OWNER = os.environ["OWNER"]
EMBED, WRITER, WHAT = f"{OWNER}/embed", f"{OWNER}/writer", f"{OWNER}/what-file"
QUESTION = "how much protein per day"
PASSAGES = ["Adults need 46 to 56 grams of protein daily.", "The Eiffel tower is in Paris.", "Cats sleep 15 hours a day."]  # fmt: skip
WRITING: dict[str, Any] = {"prompt": "The class ", "max_chars": 200, "seed": 0, "temperature": 0.7}


def embed() -> Any:
    """A2: a question against three passages."""
    question = fal_client.run(EMBED, arguments={"texts": [QUESTION], "kind": "query"})
    passages = fal_client.subscribe(EMBED, arguments={"texts": PASSAGES})
    return {"dim": passages["dim"], "question": question["vectors"][0], "passages": passages["vectors"]}


def load() -> Any:
    """A2: 200 requests through the queue; every eighth is watched to its end."""

    def follow(handle: Any) -> list[int]:
        statuses = handle.iter_events(interval=0.05)
        return [status.position for status in statuses if isinstance(status, fal_client.Queued)]

    handles = [fal_client.submit(EMBED, arguments={"texts": [f"text {n}"]}) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        positions = list(pool.map(follow, handles[::8]))
        dims = list(pool.map(lambda handle: handle.get()["dim"], handles))
    return {"ids": len({handle.request_id for handle in handles}), "dims": dims, "positions": positions}


def stream() -> Any:
    """A5: the text as it is written, and its beginning thrice, for its time."""
    first_ms = []
    for _ in range(3):
        began = time.perf_counter()
        events = _stream(WRITING)
        next(events)
        first_ms.append(1000 * (time.perf_counter() - began))
        events.close()
    began = time.perf_counter()
    pieces = [(time.perf_counter() - began, event["text"]) for event in fal_client.stream(WRITER, arguments=WRITING)]  # fmt: skip
    text = WRITING["prompt"] + "".join(piece for _, piece in pieces)
    moments = {round(moment, 3) for moment, _ in pieces}
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest(), "events": len(pieces), "moments": len(moments), "first_ms": first_ms}  # fmt: skip


def _stream(arguments: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Return the client's generator, which is left by closing it."""
    return cast("Generator[dict[str, Any], None, None]", fal_client.stream(WRITER, arguments=arguments))


def leave() -> Any:
    """A5: somebody leaves after ten characters; how many were written before and after."""
    events = _stream(WRITING | {"max_chars": 5000})
    for _ in range(10):
        next(events)
    events.close()
    return _counts()


def _counts() -> dict[str, Any]:
    """Read the App's counter until it says the same for half a second, for ten at most."""
    counts: list[int] = []
    end = time.monotonic() + 10
    while time.monotonic() < end and not (len(counts) > 5 and len(set(counts[-6:])) == 1):
        counts.append(fal_client.run(WRITER, arguments={}, path="/written")["count"])
        time.sleep(0.1)
    return {"counts": counts}


def upload(path: str) -> Any:
    """A7: a file that is larger than a part, then its kind and its digest from the App."""
    fal_client.client.REST_URL = os.environ["FAL_NB_REST_URL"]
    fal_client.client.CDN_URL = os.environ["FAL_NB_CDN_URL"]
    url = fal_client.upload_file(Path(path))
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"url": url, "peak_mb": peak_kb / 1024, "answer": fal_client.subscribe(WHAT, arguments={"file_url": url})}  # fmt: skip


def main(case: str, *args: str) -> None:
    chosen: Callable[..., Any] = globals()[case]
    print(json.dumps(chosen(*args)))


if __name__ == "__main__":
    main(*sys.argv[1:])
