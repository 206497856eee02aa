"""One line on standard error that says what is being measured and how much is left."""

from __future__ import annotations

import shutil
import sys
import time


class Progress:
    """Overwrites its line on a terminal; elsewhere prints one line per job.

    Args:
        jobs: how many jobs there are.
        quiet: say nothing but warnings.
    """

    def __init__(self, jobs: int, *, quiet: bool = False) -> None:
        self._jobs, self._done, self._quiet = jobs, 0, quiet
        self._begun = time.monotonic()
        self._live = sys.stderr.isatty() and not quiet

    def start(self, name: str) -> None:
        """A job begins."""
        if not self._live and not self._quiet:
            print(f"[{self._done + 1}/{self._jobs}] {name}", file=sys.stderr, flush=True)
        self.say(name)

    def finish(self) -> None:
        """The job is done."""
        self._done += 1

    def say(self, text: str) -> None:
        """What is happening right now."""
        if not self._live:
            return
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        line = f"[{self._done + 1}/{self._jobs}] {minutes}:{seconds:02d} {text}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something went wrong; stays on the screen."""
        self.close()
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
