"""The first schema: accounts, images, bundles, revisions, aliases, deployments, runners, sessions, events."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0001"
down_revision = None

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make every table of an empty store."""
    op.create_table(
        "account",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("nickname", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("account_by_nickname", "account", ["nickname"])
    op.create_table(
        "alias",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("name", Text(), nullable=False),
        Column("environment", Text(), nullable=False),
        Column("revision", Text(), nullable=False),
        Column("auth", Text(), nullable=False),
        Column("scale_json", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("switched_at", NUMBER, nullable=False),
        Column("session", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("alias_by_account_name", "alias", ["account", "name"])
    op.create_index("alias_by_name", "alias", ["name"])
    op.create_index("alias_by_revision", "alias", ["revision"])
    op.create_index("alias_by_session", "alias", ["session"])
    op.create_table(
        "api_key",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("secret_sha256", Text(), nullable=False),
        Column("scope", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("expires_at", NUMBER, nullable=True),
        Column("revoked_at", NUMBER, nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("api_key_by_account", "api_key", ["account"])
    op.create_table(
        "bundle",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("payload_sha256", Text(), nullable=False),
        Column("manifest_json", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
    )
    op.create_index("bundle_by_account", "bundle", ["account"])
    op.create_table(
        "deployment",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("revision", Text(), nullable=False),
        Column("state", Text(), nullable=False),
        Column("strategy", Text(), nullable=False),
        Column("auth", Text(), nullable=False),
        Column("scale_json", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("session", Text(), nullable=True),
        Column("previous", Text(), nullable=True),
        Column("runner", Text(), nullable=True),
        Column("error_json", Text(), nullable=True),
        Column("phases_json", Text(), nullable=False),
        Column("switched_at", NUMBER, nullable=True),
        Column("ended_at", NUMBER, nullable=True),
        Column("no_cache", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("deployment_by_account_app", "deployment", ["account", "app"])
    op.create_index("deployment_by_app_state", "deployment", ["app", "state"])
    op.create_index("deployment_by_revision", "deployment", ["revision"])
    op.create_index("deployment_by_session", "deployment", ["session"])
    op.create_index("deployment_by_state", "deployment", ["state"])
    op.create_table(
        "event",
        Column("n", NUMBER, primary_key=True, nullable=False, autoincrement=False),
        Column("at", NUMBER, nullable=False),
        Column("subject", Text(), nullable=False),
        Column("kind", Text(), nullable=False),
        Column("app", Text(), nullable=True),
        Column("data_json", Text(), nullable=False),
    )
    op.create_index("event_by_app", "event", ["app", "n"])
    op.create_index("event_by_subject", "event", ["subject", "n"])
    op.create_table(
        "image",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("state", Text(), nullable=False),
        Column("requirements_json", Text(), nullable=False),
        Column("python_version", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("built_at", NUMBER, nullable=True),
        Column("size_bytes", NUMBER, nullable=True),
        Column("error_json", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("image_by_state", "image", ["state"])
    op.create_table(
        "meta",
        Column("key", Text(), primary_key=True, nullable=False),
        Column("n", NUMBER, nullable=False),
        Column("text", Text(), nullable=False),
    )
    op.create_table(
        "node",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("epoch", NUMBER, nullable=False),
        Column("inventory_json", Text(), nullable=False),
        Column("seen_at", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_table(
        "revision",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("bundle", Text(), nullable=False),
        Column("image", Text(), nullable=False),
        Column("spec_json", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("status", Text(), nullable=False),
        Column("message", Text(), nullable=True),
        Column("notebook", Text(), nullable=True),
        Column("cell_json", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("revision_by_account_app", "revision", ["account", "app"])
    op.create_index("revision_by_app", "revision", ["app"])
    op.create_index("revision_by_image", "revision", ["image"])
    op.create_table(
        "runner",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("revision", Text(), nullable=False),
        Column("node", Text(), nullable=False),
        Column("epoch", NUMBER, nullable=False),
        Column("phase", Text(), nullable=False),
        Column("machine_type", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("deadline", NUMBER, nullable=False),
        Column("pid", NUMBER, nullable=True),
        Column("start_kind", Text(), nullable=True),
        Column("start_reason", Text(), nullable=True),
        Column("setup_at", NUMBER, nullable=True),
        Column("ready_at", NUMBER, nullable=True),
        Column("ended_at", NUMBER, nullable=True),
        Column("reason", Text(), nullable=True),
        Column("error_json", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("runner_by_account_app", "runner", ["account", "app"])
    op.create_index("runner_by_app_phase", "runner", ["app", "phase"])
    op.create_index("runner_by_node_phase", "runner", ["node", "phase"])
    op.create_index("runner_by_phase", "runner", ["phase"])
    op.create_index("runner_by_revision_phase", "runner", ["revision", "phase"])
    op.create_table(
        "session",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("kind", Text(), nullable=False),
        Column("label", Text(), nullable=False),
        Column("pid", NUMBER, nullable=True),
        Column("start_time", NUMBER, nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("ended_at", NUMBER, nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("session_by_account_ended_at", "session", ["account", "ended_at"])
    op.create_index("session_by_ended_at", "session", ["ended_at"])
    _begin_counts()


def _begin_counts() -> None:
    for key in ("leader", "events", "release"):
        op.execute(f"INSERT INTO meta (key, n, text) VALUES ('{key}', 0, '')")
