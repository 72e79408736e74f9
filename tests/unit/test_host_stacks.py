"""Where a runner that hangs stood."""

from __future__ import annotations

from fal_notebook.runtime.host_stacks import stuck_at

DUMP = """
sleeping
Thread 0x01 (most recent call first):
  File "/py/socket.py", line 294 in accept
  File "/r/fal_notebook/runtime/control.py", line 157 in _serve

Current thread 0x02 (most recent call first):
  File "/home/me/app.py", line 4 in load
  File "/home/me/app.py", line 8 in setup
  File "/r/fal_notebook/runtime/lifecycle.py", line 189 in _call_hook
  File "<frozen runpy>", line 88 in _run_code
""".strip().splitlines()


def test_the_users_frames_are_shown_as_a_traceback_outermost_first() -> None:
    assert stuck_at(DUMP).splitlines() == [
        "Traceback (most recent call last):",
        '  File "/home/me/app.py", line 8, in setup',
        '  File "/home/me/app.py", line 4, in load',
    ]


def test_a_dump_without_frames_of_the_user_is_passed_on() -> None:
    ours = [line for line in DUMP if "/home/me" not in line]
    assert stuck_at(ours).splitlines()[0].startswith("Current thread")
    assert stuck_at(["killed"]) == "killed"
