"""Where training starts: heads that look back one to four tokens, and heads that match what they found.

A small transformer on a small machine takes very long to discover induction (finding the value that followed an earlier
occurrence of the key). So the first layer starts with heads that copy the embedding of the token 1 to 3 or 4 places back into a
part of the hidden state of their own, and the second with heads that compare those parts and copy the token found. All of it is
only the starting point: every weight is trained.
"""

import math

import torch
from torch import nn

from benchmarks.pair.shapes import HEAD, ROTARY_BASE, Shape

_CONSTANT = 2.0  # value of the constant dimension, beside an identity part of norm about 1 per dimension
_NEAR = 6  # rotary pairs, from the fastest, that decide by distance
_FAR = 13  # rotary pairs from this one on hardly turn within the context: they decide by content
_SHARPNESS = 10.0  # logit per rotary pair at the wanted distance
_MATCH = 12.0  # logit of a full match


def seeded(shape: Shape):
    """A `LlamaForCausalLM` in float32."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(shape.seed)
    model = LlamaForCausalLM(shape.config())
    with torch.no_grad():
        for (
            layer
        ) in model.model.layers:  # whatever is not seeded adds nothing to the hidden state until training has use for it
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        _embeddings(model.model.embed_tokens.weight, shape)
        part = (shape.hidden - shape.identity - 1) // shape.offsets
        read = _orthonormal(part, shape.identity)
        first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
        parts = [_part(head, part, shape) for head in range(shape.offsets)]
        for head, into in enumerate(parts):
            _look_back(first, head, head + 1, shape, read, into)
        one, two, three = parts[:3]
        _match(second, 0, shape, read, [(None, one), (one, two)])
        _match(second, 1, shape, read, [(one, two), (two, three)])
        if shape.offsets > 3:
            _match(second, 2, shape, read, [(None, one), (one, two), (two, three)])
            _match(second, 3, shape, read, [(None, one), (parts[3], two)])  # the next of a list: four back here, two back there
    return model


def _embeddings(weight: torch.Tensor, shape: Shape) -> None:
    """Token identity in the first dimensions, a constant in the last, nothing in the parts that heads will fill."""
    weight.zero_()
    weight[:, : shape.identity].normal_(std=1 / math.sqrt(shape.identity))
    weight[:, -1] = _CONSTANT / math.sqrt(shape.identity)


def _part(index: int, size: int, shape: Shape) -> slice:
    start = shape.identity + index * size
    return slice(start, start + size)


def _look_back(attention: nn.Module, head: int, offset: int, shape: Shape, read: torch.Tensor, part: slice) -> None:
    """Attend to the token `offset` places back, by position alone, and write its embedding to `part`."""
    rows = slice(head * HEAD, (head + 1) * HEAD)
    constant = _CONSTANT * math.sqrt(shape.hidden / shape.identity) / math.sqrt(1 + _CONSTANT**2 / shape.identity)
    strength = math.sqrt(_SHARPNESS * math.sqrt(HEAD)) / constant
    for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        matrix[rows] = 0
    pairs = torch.arange(_NEAR)
    turn = ROTARY_BASE ** (-pairs / (HEAD // 2)) * offset
    start = rows.start
    attention.q_proj.weight[start : start + _NEAR, -1] = strength
    attention.k_proj.weight[start : start + _NEAR, -1] = strength * torch.cos(turn)
    attention.k_proj.weight[start + HEAD // 2 : start + HEAD // 2 + _NEAR, -1] = strength * torch.sin(turn)
    size = part.stop - part.start
    attention.v_proj.weight[rows, :] = 0
    attention.v_proj.weight[start : start + size, : shape.identity] = read
    attention.o_proj.weight[:, rows] = 0
    attention.o_proj.weight[part, start : start + size] = torch.eye(size) / math.sqrt(shape.hidden)


def _match(attention: nn.Module, head: int, shape: Shape, read: torch.Tensor, compared: list) -> None:
    """Attend where each pair of parts agrees (None is the token itself) and copy the token found there."""
    rows = slice(head * HEAD, (head + 1) * HEAD)
    for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        matrix[rows] = 0
    size = read.shape[0]
    far = HEAD // 2 - _FAR
    lanes = [*range(rows.start + _FAR, rows.start + HEAD // 2), *range(rows.start + HEAD // 2 + _FAR, rows.stop)]
    strength = math.sqrt(_MATCH * math.sqrt(HEAD) * shape.identity / shape.hidden / far)
    for own, other in compared:
        lift = _orthonormal(min(2 * far, size), size) if 2 * far <= size else _orthonormal(size, 2 * far).T
        for weight, part in ((attention.q_proj.weight, own), (attention.k_proj.weight, other)):
            block = torch.zeros(2 * far, shape.hidden)
            block[: lift.shape[0], slice(0, shape.identity) if part is None else part] = lift @ read if part is None else lift
            weight[lanes] += strength * block
    copied = _orthonormal(HEAD, shape.identity)
    attention.v_proj.weight[rows, : shape.identity] = copied
    attention.o_proj.weight[:, rows] = 0
    attention.o_proj.weight[: shape.identity, rows] = copied.T / math.sqrt(shape.hidden) * 2


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    """`[rows, columns]` with orthonormal rows (or columns if there are more rows)."""
    return nn.init.orthogonal_(torch.empty(rows, columns))
