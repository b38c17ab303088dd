"""Prints the outcome of each attack on this machine, as the table in ``sandboxes/README.md``.

``python benchmarks/abuse.py local docker`` takes a minute for each back end. Limits that a back end does not
enforce here are accepted, and shown as such. Run it in a control group that bounds processes, or the endless
fork bomb is not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import replace
from typing import get_args

from agentrl.plugins import load_sandbox, make_sandbox
from agentrl.sandbox import Limit
from agentrl.testing.abuse import SPEC, abuse, table


def main() -> None:
    """Print the outcome of each attack on this machine; exit with 1 if any escaped."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("providers", nargs="+", metavar="NAME", help="a registered name, or module:attribute")
    parser.add_argument(
        "--image", default="", help="the image of the sandboxes; by default the provider's own"
    )
    parser.add_argument("--verbose", action="store_true", help="also print what was found for each attack")
    options = parser.parse_args()
    rows = {}
    for name in options.providers:
        fields = {field.name for field in dataclasses.fields(load_sandbox(name))}  # type: ignore[arg-type]  # by contract, a dataclass
        accepted = {"unenforced": frozenset(get_args(Limit))} if "unenforced" in fields else {}
        rows[name] = abuse(make_sandbox(name, **accepted), spec=replace(SPEC, image=options.image))
        for row in rows[name]:
            if options.verbose or row.outcome == "escaped":
                print(
                    f"{name}: {row.attack}: {row.outcome} after {row.duration_s:.1f} s: {row.detail}",
                    file=sys.stderr,
                )
    print(table(rows))
    sys.exit(any(row.outcome == "escaped" for found in rows.values() for row in found))


if __name__ == "__main__":
    main()
