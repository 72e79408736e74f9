from __future__ import annotations

import uuid

import pytest
from fal_backend.api.gateway import _parse_target, _seconds
from fal_backend.api.head import Head
from fal_backend.domain.request import Refusal
from fal_backend.services.request_ids import RequestIds


@pytest.mark.parametrize(
    ("raw", "key", "rest", "endpoint"),
    [
        (b"/run/me/app", b"me/app", b"/", b"me/app"),
        (b"/run/me/app/", b"me/app", b"/", b"me/app"),
        (b"/run/me/app?x=1", b"me/app", b"/?x=1", b"me/app"),
        (b"/run/me/app/a/b?x=/run/../", b"me/app", b"/a/b?x=/run/../", b"me/app/a/b"),
        (b"/run/me/app/a%20b", b"me/app", b"/a%20b", b"me/app/a%20b"),
        (b"/run/me/app/.well-known/x", b"me/app", b"/.well-known/x", b"me/app/.well-known/x"),
    ],
)
def test_a_path_names_the_app_and_what_it_is_asked_for(
    raw: bytes, key: bytes, rest: bytes, endpoint: bytes
) -> None:
    target = _parse_target(raw)
    assert (target.key, target.rest, target.endpoint) == (key, rest, b"x-fal-endpoint: %b\r\n" % endpoint)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"/run/", 404),
        (b"/run/me", 404),
        (b"/run/me/", 404),
        (b"/run//app", 404),
        (b"/run/me/app/../x", 400),
        (b"/run/me/app/%2e%2e", 400),
        (b"/run/me/app/a%00", 400),
        (b"/run/me/app/x\\..\\y", 400),
    ],
)
def test_a_path_without_an_app_or_one_that_climbs_is_refused(raw: bytes, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        _parse_target(raw)
    assert refused.value.status == status


def test_request_ids_are_uuids_of_version_four_and_never_repeat() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(uuid.UUID(one).version == 4 and uuid.UUID(one).variant == uuid.RFC_4122 for one in made)


@pytest.mark.parametrize("given", [b"0.1", b"0", b"-1", b"soon", b"nan", b""])
def test_a_start_limit_must_be_a_number_above_a_tenth(given: bytes) -> None:
    with pytest.raises(Refusal):
        _seconds(given)


def test_a_head_forwards_what_is_the_apps_business_and_nothing_else() -> None:
    raw = [
        (b"Host", b"h"),
        (b"Authorization", b"Key k"),
        (b"Cookie", b"c"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"X-Fal-NB-Attempt", b"9"),
        (b"X-Fal-Endpoint", b"other/app"),
        (b"X-App-Fal-Upload-Policy", b"p"),
    ]
    lines = Head(b"POST", raw).forwarded.split(b"\r\n")
    assert lines == [b"host: h", b"x-app-fal-upload-policy: p", b"x-fal-object-lifecycle-preference: {}", b""]
    mine = Head(b"POST", [(b"X-Fal-Object-Lifecycle-Preference", b'{"a":1}')])
    assert mine.forwarded == b'x-fal-object-lifecycle-preference: {"a":1}\r\n'
