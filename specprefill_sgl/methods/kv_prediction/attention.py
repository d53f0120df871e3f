"""A model's attention layers with their rotary embeddings: where keys and values are, and what turned the keys."""

from typing import Any, NamedTuple

from torch import nn

from specprefill_sgl.methods.kv_prediction import rope


class Layer(NamedTuple):
    """SGLang's `RadixAttention` and the rotary embedding of the module that it belongs to."""

    attention: Any
    rotary: Any


def layers(model: nn.Module) -> list[Layer]:
    """In the order of a forward.

    Raises
    ------
    ValueError
        If the model has attention whose keys and values are not written token by token as they are after its rotary embedding.
    """
    from sglang.srt.layers.radix_attention import RadixAttention

    found = {}
    for module in model.modules():
        for child in module.children():
            if isinstance(child, RadixAttention):
                found[child.layer_id] = Layer(child, _rotary_beside(module, child))
    return [found[number] for number in sorted(found)]


def _rotary_beside(module: nn.Module, attention: Any) -> Any:
    if attention.is_cross_attention or (attention.sliding_window_size or -1) >= 0:
        raise ValueError("a layer of it does not attend to the whole prompt")
    rotary = getattr(module, "rotary_emb", None)
    if rotary is None:
        raise ValueError(f"{type(module).__name__} has no rotary embedding where it is looked for")
    rope.check(rotary)
    return rotary
