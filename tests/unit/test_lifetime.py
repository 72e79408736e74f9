"""What an uploader's wish for a file's lifetime means."""

from __future__ import annotations

import pytest
from fal_backend.domain.lifetime import lifetime_of

from fal_notebook.errors import UsageError


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("{}", None),
        ("null", None),
        ('{"expiration_duration_seconds": 60}', 60),
        ('{"expiration_duration_seconds": "3600"}', 3600),
        ('{"expiration_duration_seconds": 1.9}', 1),
        ('{"expiration_duration_seconds": 0}', None),
        ('{"expiration_duration_seconds": null}', None),
        ('{"expiration_duration_seconds": 1e30}', 100 * 365 * 86400),
        ('{"initial_acl": {"default": "allow", "rules": []}}', None),
        ('{"initial_acl": {"rules": [{"user": "a", "decision": "allow"}]}}', None),
    ],
)
def test_seconds_are_read(header: str | None, seconds: int | None) -> None:
    assert lifetime_of(header) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "1",
        '{"expiration_duration_seconds": true}',
        '{"expiration_duration_seconds": "soon"}',
        '{"expiration_duration_seconds": NaN}',
        '{"expiration_duration_seconds": Infinity}',
        '{"expiration_duration_seconds": []}',
        '{"initial_acl": {"default": "forbid"}}',
        '{"initial_acl": {"rules": [{"user": "a", "decision": "hide"}]}}',
        '{"initial_acl": "private"}',
    ],
)
def test_what_cannot_be_kept_to_is_refused(header: str) -> None:
    with pytest.raises(UsageError):
        lifetime_of(header)
