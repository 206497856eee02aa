"""Many small ``nn.Sequential`` perceptrons of one shape, run as a few large products.

Their parameters stay where they are: every call stacks them, which costs little beside a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.ops import stacked_linear

# With batch statistics, wider layers are as fast one by one: their rows stay in the cache from the
# product to the norm and the activation.
_WIDEST_IN_TRAINING = 64


class _Layer(NamedTuple):
    """One layer of one perceptron: a linear map, and what may follow it."""

    linear: nn.Linear
    norm: nn.BatchNorm1d | None
    activation: nn.Module | None
    dropout: nn.Dropout | None

    def parts(self) -> list[nn.Module]:
        return [part for part in self if part is not None]


def why_not(networks: Sequence[nn.Module]) -> str:
    """Why these perceptrons cannot run together; empty where they can."""
    first: list[tuple[object, ...]] | None = None
    for network in networks:
        if type(network) is not nn.Sequential:
            return f"{type(network).__name__} is no nn.Sequential"
        layers = _layers(network)
        if isinstance(layers, str):
            return layers
        shape = [_signature(layer) for layer in layers]
        if first is not None and shape != first:
            return "its perceptrons differ in shape or options"
        first = shape
    return "" if first else "it has no perceptrons"


def run(networks: Sequence[nn.Module], x: Tensor, backend: str) -> Tensor:
    """``[S, B, in]`` to ``[G, B, out]``, as :func:`mtlfast.ops.stacked_linear` assigns inputs."""
    stacks = list(zip(*[_layers(network) for network in networks], strict=True))
    outputs: Tensor | list[Tensor] = x  # a list while perceptrons run one by one
    for layers in stacks:
        outputs = _run_layer(layers, outputs, backend)
    return _stacked(outputs)


def _stacked(x: Tensor | list[Tensor]) -> Tensor:
    # Sample by sample in memory, as the C++ op lays out maps of one input.
    return x if isinstance(x, Tensor) else torch.stack(x, dim=1).transpose(0, 1)


def _layers(network: nn.Module) -> list[_Layer] | str:
    """The layers of a perceptron, or why it is none that we know."""
    layers: list[_Layer] = []
    for module in network.children():
        if type(module) is nn.Linear:
            layers.append(_Layer(module, None, None, None))
            continue
        if not layers:
            return f"it starts with {type(module).__name__}, not with nn.Linear"
        last = layers[-1]
        if type(module) is nn.BatchNorm1d:
            if last.norm or last.activation or last.dropout:
                return "a batch norm does not follow a linear map"
            if module.momentum is None or not (module.affine and module.track_running_stats):
                return "a batch norm without momentum, scale or running statistics"
            layers[-1] = last._replace(norm=module)
        elif type(module) is nn.ReLU or (type(module) is nn.Softmax and module.dim in (1, -1)):
            if last.activation or last.dropout:
                return "an activation does not follow a linear map or its batch norm"
            layers[-1] = last._replace(activation=module)
        elif type(module) is nn.Dropout:
            if last.dropout:
                return "two dropouts follow each other"
            layers[-1] = last._replace(dropout=module)
        else:
            return f"{type(module).__name__} is no part that it knows"
    return layers


def _signature(layer: _Layer) -> tuple[object, ...]:
    linear, norm, activation, dropout = layer
    return (
        (linear.in_features, linear.out_features, linear.bias is None),
        None if norm is None else (norm.eps, norm.momentum),
        None if activation is None else type(activation),
        None if dropout is None else dropout.p,
    )


def _run_layer(
    layers: Sequence[_Layer], x: Tensor | list[Tensor], backend: str
) -> Tensor | list[Tensor]:
    first = layers[0]
    norms = [layer.norm for layer in layers if layer.norm is not None]
    training = bool(norms) and norms[0].training
    if torch.is_grad_enabled() and not training:
        # The C++ op sums the gradients of biases less exactly than torch does, and so does folding.
        # Before a norm of batch statistics a bias has none.
        return _one_by_one(layers, x)
    if any(norm.training != training for norm in norms) or (
        training and first.linear.out_features > _WIDEST_IN_TRAINING
    ):
        return _one_by_one(layers, x)
    x = _stacked(x)
    weight = torch.stack([layer.linear.weight for layer in layers])
    bias = None
    if first.linear.bias is not None:
        bias = torch.stack([layer.linear.bias for layer in layers])
    relu = type(first.activation) is nn.ReLU
    if training:
        x = _normalized(norms, stacked_linear(x, weight, bias, backend=backend))
        if relu:
            x = F.relu(x, inplace=True)
    else:
        if norms:
            weight, bias = _folded(norms, weight, bias)
        x = stacked_linear(x, weight, bias, relu=relu, backend=backend)
    if type(first.activation) is nn.Softmax:
        x = x.softmax(dim=-1)
    if first.dropout is not None and first.dropout.p:
        x = F.dropout(x, first.dropout.p, first.dropout.training)
    return x


def _one_by_one(layers: Sequence[_Layer], x: Tensor | list[Tensor]) -> list[Tensor]:
    inputs = list(x)  # not x[g], whose gradient is as large as x
    outputs = []
    for g, layer in enumerate(layers):
        out = inputs[g * len(inputs) // len(layers)]
        for part in layer.parts():
            out = part(out)
        outputs.append(out)
    return outputs


def _folded(
    norms: Sequence[nn.BatchNorm1d], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The linear maps with the batch norms of inference in them."""
    scale = torch.stack([norm.weight for norm in norms])
    scale = scale * (_stack_buffers(norms, "running_var") + norms[0].eps).rsqrt()
    shift = (
        -_stack_buffers(norms, "running_mean")
        if bias is None
        else bias - _stack_buffers(norms, "running_mean")
    )
    shift = shift * scale + torch.stack([norm.bias for norm in norms])
    return weight * scale.unsqueeze(-1), shift


def _normalized(norms: Sequence[nn.BatchNorm1d], x: Tensor) -> Tensor:
    """Batch norms of ``[G, B, out]`` with the batch's statistics; updates the running ones."""
    groups, rows, width = x.shape
    mean = _stack_buffers(norms, "running_mean").flatten()
    var = _stack_buffers(norms, "running_var").flatten()
    out = F.batch_norm(
        x.transpose(0, 1).reshape(rows, groups * width),
        mean,
        var,
        torch.cat([norm.weight for norm in norms]),
        torch.cat([norm.bias for norm in norms]),
        training=True,
        momentum=norms[0].momentum or 0.0,
        eps=norms[0].eps,
    )
    with torch.no_grad():
        for norm, new_mean, new_var in zip(norms, mean.split(width), var.split(width), strict=True):
            norm.get_buffer("running_mean").copy_(new_mean)
            norm.get_buffer("running_var").copy_(new_var)
            norm.get_buffer("num_batches_tracked").add_(1)
    return out.view(rows, groups, width).transpose(0, 1)


def _stack_buffers(norms: Sequence[nn.BatchNorm1d], name: str) -> Tensor:
    return torch.stack([norm.get_buffer(name) for norm in norms])
