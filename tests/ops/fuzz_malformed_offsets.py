"""Run as a script: throws malformed offsets, bounds and indices at the fused op.

Every call must either be refused with the reference's text or give the reference's result.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

sys.path.insert(0, sys.argv[1])

import torch
from interest_cases import Case, make

from mtlfast import ops, reference
from mtlfast.reference.conditional_interest import check_data

EXTREMES = [-(2**63), -(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1]


def number(random: random.Random, near: int) -> int:
    kind = random.randrange(3)
    if kind == 0:
        return random.choice(EXTREMES)
    if kind == 1:
        return random.randint(-5, near + 5)
    return random.randint(-(2**63), 2**63 - 1)


def malformed(random: random.Random, case: Case) -> Case:
    tokens = len(case.tensors["values"])
    offsets, max_len, user_index = case.offsets.tolist(), case.max_len, case.user_index
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(6)
        if kind == 0:
            offsets[random.randrange(len(offsets))] = number(random, tokens)
        elif kind == 1:
            random.shuffle(offsets)
        elif kind == 2:
            offsets = sorted(random.randint(0, tokens) for _ in offsets)
            offsets[0], offsets[-1] = 0, tokens
        elif kind == 3:
            max_len = random.choice([0, 1, case.max_len - 1, case.max_len, 2**31, 2**62])
        elif kind == 4:
            offsets = [number(random, tokens) for _ in offsets]
        elif user_index is not None and len(user_index):
            users = user_index.tolist()
            users[random.randrange(len(users))] = number(random, len(offsets) // 2)
            user_index = torch.tensor(users)
    index_dtype = torch.int64
    if random.random() < 0.3:
        offsets = [max(-(2**31), min(2**31 - 1, offset)) for offset in offsets]
        index_dtype = torch.int32
    return replace(
        case,
        offsets=torch.tensor(offsets, dtype=index_dtype),
        max_len=max(max_len, 0),
        user_index=user_index,
    )


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        return str(error)


def main(calls: int) -> None:
    torch.set_num_threads(1)
    draw = random.Random(0)
    cases = [
        make([[3, 0, 5, 1], [0, 0, 2, 9]]),
        make([[1, 0, 2, 0, 17, 1]], num_candidates=9),
        make([[2], [0], [1]], d=8, d_f=8, num_tasks=1, num_candidates=3),
        make(torch.randint(0, 4, (2, 40)), d=8, d_f=8, num_tasks=1),
    ]
    refused = 0
    for i in range(calls):
        case = malformed(draw, draw.choice(cases))
        with torch.set_grad_enabled(i % 4 == 0):
            found = outcome(case.call, ops.conditional_interest, backend="cpu")
            refusal = outcome(check_data, case.sequences, case.user_index)
            if refusal is not None:
                refused += 1
                assert found == refusal, (found, refusal)
                continue
            assert isinstance(found, torch.Tensor), found
            if found.requires_grad:
                case.gradients(found, torch.ones_like(found))
                expected = case.call(reference.conditional_interest)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert refused > calls // 2
    print(f"{calls} calls, {refused} refused")


main(int(sys.argv[2]))
