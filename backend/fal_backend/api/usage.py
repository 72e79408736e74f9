"""The usage ledger over HTTP: what an account is charged for, and all of it for who manages the backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import FastAPI, Query

from fal_backend.api.control import PREFIX, Who
from fal_backend.domain.access import Operation, Target, Verdict, may
from fal_backend.domain.usage import MINUTE_US, cost
from fal_backend.ports import UsageSum
from fal_backend.services.accounts import Accounts
from fal_backend.services.usage import UsageLedger
from fal_backend.services.views import moment
from fal_notebook.errors import AuthError
from fal_notebook.wire_access import UsageReport, UsageRow

__all__ = ["usage_routes"]

_DEFAULT = timedelta(days=30)


def usage_routes(
    ledger: UsageLedger, accounts: Accounts, *, prices: Mapping[str, float], currency: str
) -> Callable[[FastAPI], None]:
    """Return what adds the route to the control API."""

    async def usage(
        who: Who,
        since: datetime | None = None,
        until: datetime | None = None,
        app: str | None = None,
        by_minute: bool = False,
        everybodys: Annotated[bool, Query(alias="all")] = False,
    ) -> UsageReport:
        """Say what was used; times are rounded down to minutes, and `until` up."""
        if everybodys and may(who, Operation.GOVERN, Target(who.account)) is not Verdict.OK:
            raise AuthError("Only an admin of this backend may see everybody's usage.", code="auth.forbidden")
        end = _utc(until) if until is not None else datetime.now(UTC)
        begin = _utc(since) if since is not None else end - _DEFAULT
        first, last = _minute(begin), _minute(end) + 1
        sums = await ledger.sums(
            first,
            last,
            account=None if everybodys else who.account,
            app=app if app is None or "/" in app else f"{who.nickname}/{app}",
            by_minute=by_minute,
        )
        rows = [_row(one, accounts, prices) for one in sums]
        return UsageReport(
            since=moment(first * MINUTE_US),
            until=moment(last * MINUTE_US),
            currency=currency,
            rows=rows,
            calls=sum(row.calls for row in rows),
            seconds=sum(row.seconds for row in rows),
            cost=sum(row.cost for row in rows),
        )

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/usage", usage, methods=["GET"], name="usage")

    return install


def _row(one: UsageSum, accounts: Accounts, prices: Mapping[str, float]) -> UsageRow:
    return UsageRow(
        account=accounts.nickname(one.account),
        app=one.app,
        caller=accounts.nickname(one.caller) if one.caller else None,
        machine_type=one.machine_type,
        minute=None if one.minute is None else moment(one.minute * MINUTE_US),
        calls=one.calls,
        seconds=one.micros / 1e6,
        cost=cost(one.micros, one.machine_type, prices),
    )


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _minute(at: datetime) -> int:
    return int(at.timestamp()) // 60
