"""Speculative decoding in tests: heads for tiny targets, and faults that take the original positions away."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.faults import Faults, plugin_on_path

INTERPRETED = {"TRITON_INTERPRET": "1"}  # SGLang's kernels around drafts and verification are Triton's
_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")

_PLUGIN = """
import os

SWITCHES = {switches!r}


def register():
    import numpy as np
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
    from specprefill_sgl.hooks import model

    right, who = model._behind_prompts, ["verify"]

    def drafting(method):
        def call(*args, **kwargs):
            who.append("draft")
            try:
                return method(*args, **kwargs)
            finally:
                who.pop()
        return call

    for name in ("draft", "_draft_extend_for_decode"):
        setattr(EagleDraftWorker, name, drafting(getattr(EagleDraftWorker, name)))

    def faulty(states, n_tokens, *, speculative):
        wrong = speculative and os.path.exists(os.path.join(SWITCHES, who[-1]))
        return np.zeros(n_tokens, dtype=np.int64) if wrong else right(states, n_tokens, speculative=speculative)

    model._behind_prompts = faulty
"""


class LostPositions(Faults):
    """With switch `verify` the target, with `draft` the draft, takes tokens behind a sparse prompt for those of a short one."""

    def __init__(self, folder: Path):
        self._switches = folder / "switches"
        self._switches.mkdir(parents=True)
        self.env = plugin_on_path(folder, "specprefill_lost_positions", _PLUGIN.format(switches=str(self._switches)))


def save_eagle_head(target: Path, folder: Path) -> Path:
    """A random EAGLE head of a tiny Llama: its own first layer, and a projection of token and hidden state."""
    config, weights = json.loads((target / "config.json").read_text()), load_file(target / "model.safetensors")
    hidden = config["hidden_size"]
    generator = torch.Generator().manual_seed(7)
    head = {
        "embed_tokens.weight": weights["model.embed_tokens.weight"],
        "fc.weight": torch.randn(hidden, 2 * hidden, generator=generator) * 0.2,
        "fc.bias": torch.zeros(hidden),
        "lm_head.weight": weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).clone(),
    }
    layer = "model.layers.0."
    head |= {
        name.removeprefix("model."): value.clone()
        for name, value in weights.items()
        if name.startswith(layer) and "input_layernorm" not in name
    }
    return _save(folder, target, {**config, "architectures": ["LlamaForCausalLMEagle"], "num_hidden_layers": 1}, head)


def save_eagle3_head(target: Path, folder: Path) -> Path:
    """A random EAGLE3 head of a tiny Llama: one layer on token and hidden state, over three of the target's hidden states."""
    config = json.loads((target / "config.json").read_text())
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {
        "fc.weight": (hidden, 3 * hidden),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, queries),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "lm_head.weight": (vocabulary, hidden),
    }
    generator = torch.Generator().manual_seed(8)
    head = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    norms = ("midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm", "norm")
    head |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    changed = {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": vocabulary}
    return _save(folder, target, {**config, **changed}, head)


def _save(folder: Path, target: Path, config: dict, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in _FILES:
        if (target / name).exists():
            shutil.copy(target / name, folder / name)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder
