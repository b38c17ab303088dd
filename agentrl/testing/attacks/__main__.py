"""Runs the attack that is named on the command line."""

from __future__ import annotations

import json
import sys

from agentrl.testing.attacks import bombs, escapes

getattr(bombs if hasattr(bombs, sys.argv[1]) else escapes, sys.argv[1])(json.load(sys.stdin))
