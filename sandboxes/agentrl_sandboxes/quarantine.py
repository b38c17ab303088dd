"""Images that do not start are refused at once, for a while, in place of costing every episode its attempts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agentrl.errors import AgentRLError, ImageMissing, SandboxError


@dataclass(slots=True)
class _Record:
    failures: int = 0
    until: float = 0.0
    last: AgentRLError | None = None


class Quarantine:
    """Counts failed starts in a row of each image; after ``after`` of them the image is refused for ``refuse_s`` seconds.

    Then one start is tried: it clears the record, or the image is refused again. An image that is missing is refused at once.
    """

    def __init__(self, *, after: int, refuse_s: float) -> None:
        self._after, self._refuse_s = after, refuse_s
        self._records: dict[str, _Record] = {}
        self.num_ever = 0
        """Times that an image was put in."""

    def check(self, image: str) -> None:
        """Pass an image, or refuse it.

        Raises:
            ImageMissing, SandboxError: it is refused; the message says why, and for how long.
        """
        record = self._records.get(image)
        if record is None or record.last is None or (left := record.until - time.monotonic()) <= 0:
            return
        if isinstance(record.last, ImageMissing):
            raise ImageMissing(str(record.last))
        count = f"{record.failures} failed starts in a row"
        raise SandboxError(
            f"image {image!r} is in quarantine after {count}, for another {left:.0f} s; the last: {record.last}"
        )

    def failed(self, image: str, problem: AgentRLError) -> None:
        """Count a failed start."""
        record = self._records.setdefault(image, _Record())
        record.failures, record.last = record.failures + 1, problem
        if record.failures >= self._after or isinstance(problem, ImageMissing):
            now = time.monotonic()
            self.num_ever += record.until <= now
            record.until = now + self._refuse_s

    def started(self, image: str) -> None:
        """Clear an image's record."""
        self._records.pop(image, None)
