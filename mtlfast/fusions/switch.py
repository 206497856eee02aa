"""Our own modules choose among backends: fusing one is a switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtlfast.jagged import JaggedSequences
from mtlfast.nn import (
    ConditionalTransformer,
    InjectedTransformer,
    MultiHashCodebook,
    SeparateTransformers,
)
from mtlfast.nn.conditional_transformer import TransformerLayer
from mtlfast.ops import ConditionalTransformerWeights, explain

_RECORD = "_mtlfast_switched"  # in a module's __dict__
_TRANSFORMERS = (ConditionalTransformer, SeparateTransformers, InjectedTransformer)


@dataclass
class Switched:
    """What a module's backend was before :func:`switch`."""

    backend: Any


def has_backend(module: nn.Module) -> bool:
    """Whether this is one of our modules that choose a backend, or a subclass of one."""
    return isinstance(module, (*_TRANSFORMERS, MultiHashCodebook))


def backend_of(module: nn.Module) -> Any:
    return module.backend


def outlook(module: nn.Module, backend: str) -> tuple[bool, str]:
    """Whether the module's op would do as asked, and why, for inputs of the module's own dtype.

    On "auto", running on the reference is not.
    """
    if isinstance(module.backend, nn.Module):
        return False, f"its backend is a module: {type(module.backend).__qualname__}"
    try:
        with torch.no_grad():
            found = _explain(module, backend)
    except ValueError as error:
        return False, str(error)
    return backend == "reference" or found.backend != "reference", str(found)


def switch(module: nn.Module, backend: str) -> None:
    """Change the backend and remember what it was first."""
    module.__dict__.setdefault(_RECORD, Switched(module.backend))
    module.backend = backend  # type: ignore[assignment]  # it is no submodule


def switch_back(module: nn.Module) -> bool:
    """Undo :func:`switch`; whether there was anything to undo."""
    record = module.__dict__.pop(_RECORD, None)
    if record is None:
        return False
    module.backend = record.backend
    return True


def _explain(module: nn.Module, backend: str) -> Any:
    if isinstance(module, MultiHashCodebook):
        codebook = module.codebook
        return explain(
            "multi_hash_lookup",
            torch.zeros(1, module.num_fields, dtype=torch.int64, device=codebook.device),
            codebook[0],
            num_hashes=module.num_hashes,
            order=module.orders[0],
            key_fields=module.key_fields,
            hash=module.hash,
            pool=module.shrinking != "none",
            first_hash=module.first_hash,
            sparse_grad=module.sparse_grad,
            backend=backend,
        )
    encoder, decoder = _layers(module)
    norms = module.get_parameter("norm_weight")
    zeros = norms.new_zeros(1, norms.shape[-1])
    lengths = torch.ones(1, 1, dtype=torch.int64, device=norms.device)
    one_token = JaggedSequences.from_lengths(zeros, lengths, max_len=1)
    tables = norms.new_ones(1, 1, 4, norms.shape[-1])
    return explain(
        "conditional_interest",
        one_token,
        zeros,
        ConditionalTransformerWeights(encoder.weights(), decoder.weights()),
        tables,
        tables,
        num_heads=module.num_heads,
        eps=module.eps,
        backend=backend,
    )


def _layers(module: Any) -> tuple[TransformerLayer, TransformerLayer]:
    # Those of the separate transformers are all of one shape.
    separate: Any = module if isinstance(module, SeparateTransformers) else None
    if separate is not None:
        return separate.encoders[0], separate.decoders[0]
    return module.encoder, module.decoder
