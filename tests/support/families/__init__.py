"""Tiny random models of the attention families SGLang serves, in Hugging Face format, with the tokenizer of all tiny models.

One file per family; a model is a row. Any of them can be a target, and a draft for any other: they share one vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.support.families import delta, latent, mixture, scan, windowed
from tests.support.families.family import Family
from tests.support.tiny_models import EOS, VOCABULARY, tokenizer

FAMILIES: dict[str, Family] = {
    **mixture.FAMILIES,
    **windowed.FAMILIES,
    **latent.FAMILIES,
    **delta.FAMILIES,
    **scan.FAMILIES,
}

_COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
    "initializer_range": 0.2,  # wide, so that attention is peaked and greedy tokens do not hang on float noise
}


def save(name: str, folder: Path, seed: int = 7, layers: int | None = None) -> Path:
    """Write a family's model with its tokenizer, of so many layers instead of its own; returns its directory."""
    import transformers

    family = FAMILIES[name]
    settings = _merged({"text_config": _COMMON} if "text_config" in family.settings else _COMMON, family.settings)
    if layers is not None:
        settings["num_hidden_layers"] = layers
    config = getattr(transformers, family.config_class)(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, family.model_class)(config).float()
    _spread(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if family.also is not None:
        family.also(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(_merged(written, family.written)))
    return folder


def _merged(settings: Mapping, more: Mapping) -> dict:
    """Both, and both of each nested mapping; `more` wins."""
    both = {**settings, **more}
    return {k: _merged(settings.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in both.items()}


def _spread(model: torch.nn.Module) -> None:
    """Give biases, norms and sinks values that matter: an implementation that drops them must fail."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-5, -1)  # or recurrent states forget all but the last token
            elif name.endswith("bias") and "correction" not in name:
                parameter.normal_(std=0.1)
            elif "q_norm" in name or "k_norm" in name:
                parameter.uniform_(1.0, 1.6)
            elif name.endswith("sinks"):
                parameter.copy_(torch.randn_like(parameter).bfloat16())  # SGLang holds them in bfloat16
            elif model.config.model_type.startswith("gemma") and "post_" in name:
                parameter.fill_(8.0)  # or its scaled, tied embedding outweighs the layers and one token is repeated
