"""Tensors that follow from a module's options alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module with constant tensors: buffers that no ``state_dict`` holds.

    They are made on the host and kept there, so that a module built on the meta device has them
    again after ``to_empty``, which fills every parameter and buffer with garbage and leaves only
    what a ``state_dict`` holds to be loaded.
    """

    def register_constant(
        self, name: str, make: Callable[[], Tensor] | None, device: torch.device | None = None
    ) -> None:
        """A buffer ``name``, made by ``make`` on the host; on the default device when None.

        With ``make`` None the module's ``name`` is None.
        """
        if make is None:
            self.register_buffer(name, None, persistent=False)
            return
        with torch.device("cpu"):
            value = make()
        self.__dict__.setdefault("_constants", {})[name] = value
        self.register_buffer(
            name, value.to(torch.empty(0).device if device is None else device), persistent=False
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, value in self.__dict__.get("_constants", {}).items():
            moved = self.get_buffer(name)
            if not moved.is_meta:
                self._buffers[name] = value.to(moved.device, moved.dtype)
        return self
