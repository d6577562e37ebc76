"""`python -m tests.interop URL [--key KEY] [--only WORD]`: a line for each case; exit code 1 if any failed."""

import argparse
import importlib
import pkgutil
import sys
import time
import traceback

from tests import interop
from tests.interop.case import CASES, Asker, Check, NotHere


def main(arguments: list[str] | None = None) -> int:
    """Run every case against one server; the count of each outcome is the last line."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop")
    parser.add_argument("url")
    parser.add_argument("--key", help="an API key, where the server asks for one")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    options = parser.parse_args(arguments)
    asker = Asker(options.url.rstrip("/"), options.key)
    outcomes = [_run(check, asker) for check in all_cases() if options.only in check.__name__]
    print(", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "not applicable")))
    return 1 if "failed" in outcomes or not outcomes else 0


def all_cases() -> list[Check]:
    """Those of every module in this package."""
    for module in pkgutil.iter_modules(interop.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{interop.__name__}.{module.name}")
    return CASES


def _run(check: Check, asker: Asker) -> str:
    name = check.__name__.replace("_", " ")
    started = time.monotonic()
    try:
        check(asker)
    except NotHere as why:
        print(f"  --  {name}: {why}")
        return "not applicable"
    except Exception:  # whatever went wrong, the other cases are still asked
        print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
        return "failed"
    print(f"  ok  {name} ({time.monotonic() - started:.1f} s)", flush=True)
    return "passed"


if __name__ == "__main__":
    sys.exit(main())
