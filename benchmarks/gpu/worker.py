"""A process that answers one question after the other, and may die of one without the others.

After an access out of bounds nothing runs in a process that has used the GPU, and a kernel that
does not end is waited for forever. What comes next gets a new process.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .graphs import synchronize


class Lost(Exception):
    """There is no answer: the process died, or had no more time. The text says which."""


class Worker:
    """Started when it is first asked, and again after it was lost."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Any = None

    def ask(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """``function(*arguments)``; both are pickled.

        Raises:
            RuntimeError: with the text of what the function raised.
            Lost: no answer within ``seconds``.
        """
        if self._process is None:
            self._pipe, theirs = self._context.Pipe()
            # No daemon, for these may start no processes, as compilers do. It ends with its pipe.
            self._process = self._context.Process(target=_serve, args=(theirs, self._device))
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(seconds):
                raise Lost(f"no answer after {seconds:.0f} s")
            usable, answer, error = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10.0)
            code = self._process.exitcode
            self.stop()
            raise Lost(f"its process ended with status {code}") from None
        except Lost:
            self.stop()
            raise
        if not usable:
            self.stop()
        if error:
            raise RuntimeError(error)
        return answer

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(10.0)  # a driver that hangs may keep it for longer
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, device: str) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        answer, error = None, ""
        try:
            answer = function(*arguments)
        except Exception as problem:
            traceback.print_exc()
            error = f"{type(problem).__name__}: {str(problem)[:200]}"
        pipe.send((_usable(device), answer, error))


def _usable(device: str) -> bool:
    try:
        synchronize(device)
    except Exception:
        traceback.print_exc()
        return False
    return True
