"""torch-rechub's MMOE before and after fuse_: the report, the difference, and the times.

pip install torch-rechub
python examples/fuse_torch_rechub.py --experts 8 --units 64
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import nn
from torch_rechub.basic.features import DenseFeature
from torch_rechub.models.multi_task import MMOE

import mtlfast


class Given(nn.Module):
    """In place of the embedding layer: the experts are what is compared."""

    def forward(self, x: torch.Tensor, features: object, squeeze_dim: bool) -> torch.Tensor:
        return x


def fastest(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of each call, the calls taking turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):  # the first is for warming up
        for call, of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [min(of_call[1:]) for of_call in times]


def training_step(model: nn.Module, x: torch.Tensor) -> None:
    model.train()(x).sum().backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def inference(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--input-dim", type=int, default=368)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--units", type=int, nargs="+", default=[256, 128])
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    original = MMOE(
        [DenseFeature(f"x{i}") for i in range(args.input_dim)],
        ["classification"] * args.tasks,
        args.experts,
        {"dims": args.units},
        [{"dims": [args.units[-1] // 2]}] * args.tasks,
    )
    original.embedding = Given()
    fused = copy.deepcopy(original)
    print(mtlfast.fuse_(fused))

    x = torch.randn(args.batch, args.input_dim)
    difference = (inference(fused, x) - inference(original, x)).abs().max().item()
    print(f"largest difference of a probability: {difference:.1e}")
    for name, run in (("training step", training_step), ("inference", inference)):
        calls = [lambda run=run, model=model: run(model, x) for model in (original, fused)]
        before, after = fastest(calls, args.repeats)
        print(f"{name}: {before * 1e3:.1f} ms -> {after * 1e3:.1f} ms, {before / after:.2f}x")


if __name__ == "__main__":
    main()
