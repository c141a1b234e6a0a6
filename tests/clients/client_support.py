"""What the client checks share: the server's address, and a count of what was checked."""

import os
import sys
import traceback

BASE = os.environ["HYBRA_BASE_URL"]
MODEL = os.environ.get("HYBRA_MODEL", "hybra-default")
# A question of the embedded model's task, and its answer.
# The template ends an answer with a line end.
QUESTION, ANSWER = "c=b-7;b=0;d=c*9;d?", "7\n"

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def run(checks):
    """Runs the functions in order; leaves with 1 if any of them fails."""
    failed = []
    for check in checks:
        try:
            check()
            print(f"  ok      {check.__name__}", flush=True)
        except Exception:  # every failure is reported, none hides the next
            failed.append(check.__name__)
            print(f"  FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
    sys.exit(1 if failed else 0)


def raises(kind, call, *words):
    """`call` fails with exactly `kind`, and its message has all `words`."""
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), str(error)
        return error
    raise AssertionError(f"expected {kind.__name__}")
