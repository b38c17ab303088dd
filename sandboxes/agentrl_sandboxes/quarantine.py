"""Quarantine: an image that fails to start is refused at once for a while, without further attempts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from agentrl.errors import AgentRLError, ImageMissing, SandboxError


@dataclass(slots=True)
class _Failures:
    num: int = 0
    until: float = 0.0
    last: AgentRLError | None = None


class Quarantine:
    """Refuses an image for ``refuse_s`` seconds after ``after`` failed starts in a row.

    After that time one start is tried: if it succeeds the count is cleared, else the image is refused again.
    A missing image is refused after its first failure.
    """

    def __init__(self, *, after: int, refuse_s: float) -> None:
        self._after, self._refuse_s = after, refuse_s
        self._failures: dict[str, _Failures] = {}
        self.num_ever = 0
        """Number of times that an image was put in quarantine, over all images."""

    def check(self, image: str) -> None:
        """Raise an error if an image is in quarantine.

        Raises:
            ImageMissing, SandboxError: the image is refused; the message says why, and for how long.
        """
        failures = self._failures.get(image)
        if failures is None or failures.last is None or (left := failures.until - time.monotonic()) <= 0:
            return
        if isinstance(failures.last, ImageMissing):
            raise ImageMissing(str(failures.last))
        count = f"{failures.num} failed starts in a row"
        raise SandboxError(
            f"image {image!r} is in quarantine after {count}, for another {left:.0f} s; "
            f"the last: {failures.last}"
        )

    def failed(self, image: str, problem: AgentRLError) -> None:
        """Count a failed start of an image; after too many in a row, put the image in quarantine."""
        failures = self._failures.setdefault(image, _Failures())
        failures.num, failures.last = failures.num + 1, problem
        if failures.num >= self._after or isinstance(problem, ImageMissing):
            now = time.monotonic()
            self.num_ever += failures.until <= now
            failures.until = now + self._refuse_s

    def started(self, image: str) -> None:
        """Clear an image's count of failed starts, because a sandbox of the image has started."""
        self._failures.pop(image, None)
