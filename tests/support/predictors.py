"""Predictors that are known exactly, for tests: the identity, and random maps; and what they predict, by Hugging Face alone."""

import json
from pathlib import Path

import torch

from specprefill_sgl.calibration.fingerprint import fingerprint
from specprefill_sgl.methods.kv_prediction import predictor_file
from tests.support.faults import plugin_on_path

_DUMP = """
import os, torch

FOLDER = {folder!r}


def register():
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from specprefill_sgl.methods.kv_prediction.publish import Publisher

    publish = Publisher.publish

    def publish_and_dump(self, prefix):
        publish(self, prefix)
        scheduler, req = self._scheduler, prefix.req
        key = RadixKey(req.origin_input_ids, req.extra_key, cache_salt=req.cache_salt)
        found = scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key))
        runner = scheduler.tp_worker.model_runner
        slots = scheduler.tree_cache.path_device_indices(found.last_device_node)
        pool = runner.token_to_kv_pool
        layers = range(runner.model_config.num_hidden_layers)
        kv = [(pool.get_key_buffer(n)[slots].clone(), pool.get_value_buffer(n)[slots].clone()) for n in layers]
        torch.save((prefix.cached, list(req.origin_input_ids), kv), os.path.join(FOLDER, "published.pt"))

    Publisher.publish = publish_and_dump
"""


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _about(target: Path, **fields) -> predictor_file.About:
    config = _config(target)
    dim = config["head_dim"]
    heads = config["num_key_value_heads"]
    return predictor_file.About(target=fingerprint(target), kv_heads=heads, head_dim=dim, value_dim=dim, **fields)


def save_identity(folder: Path, target: Path) -> Path:
    """With the target itself as draft: every layer's KV is its own."""
    config = _config(target)
    layers, size = config["num_hidden_layers"], config["num_key_value_heads"] * config["head_dim"]
    both = torch.eye(2 * size)
    weights = {}
    for layer in range(layers):
        for kind, rows in (("key", both[:size]), ("value", both[size:])):
            weights[f"{kind}.{layer}.weight"], weights[f"{kind}.{layer}.bias"] = rows.clone(), torch.zeros(size)
    about = _about(target, draft=fingerprint(target), layers=0, sources=tuple((n,) for n in range(layers)))
    predictor_file.save(folder, about, weights)
    return folder


def save_copies(folder: Path, target: Path) -> Path:
    """All layers of the target are first layers: nothing is predicted."""
    predictor_file.save(folder, _about(target, draft=None, layers=_config(target)["num_hidden_layers"], sources=()), {})
    return folder


def save_random(folder: Path, target: Path, layers: int, seed: int = 3) -> Path:
    """KV of the layers after the first ones is drawn maps of what leaves these."""
    config = _config(target)
    size, rest = config["num_key_value_heads"] * config["head_dim"], config["num_hidden_layers"] - layers
    draw = torch.Generator().manual_seed(seed)
    weights = {
        f"{kind}.{layer}.{part}": 0.3
        * torch.randn(size, *((config["hidden_size"],) if part == "weight" else ()), generator=draw)
        for layer in range(layers, layers + rest)
        for kind in ("key", "value")
        for part in ("weight", "bias")
    }
    predictor_file.save(folder, _about(target, draft=None, layers=layers, sources=((),) * rest), weights)
    return folder


class Dump:
    """A plugin that leaves what was last published, as it lies in the target's pool; `env` makes a server load it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "published.pt"
        self.env = plugin_on_path(folder, "specprefill_published", _DUMP.format(folder=str(folder)))

    def read(self):
        """How many tokens were cached, their codes, and [(keys, values)] of each layer: [tokens, kv_heads, head_dim]."""
        return torch.load(self._file)


@torch.no_grad()
def predicted(model, folder: Path, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a predictor of first layers publishes of a prompt, by layer: (keys, values), [tokens, kv_heads, head_dim]."""
    about, weights = predictor_file.about(str(folder)), predictor_file.load_weights(str(folder))
    out = model.model(torch.tensor([ids]), use_cache=True, output_hidden_states=True)
    result = []
    for number, layer in enumerate(out.past_key_values.layers):
        if number < about.layers:
            result.append((layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)))
            continue
        features = model.model.norm(out.hidden_states[about.layers][0])
        keys, values = (
            features @ weights[f"{kind}.{number}.weight"].T + weights[f"{kind}.{number}.bias"] for kind in ("key", "value")
        )
        keys, values = (one.unflatten(1, (about.kv_heads, -1)) for one in (keys, values))
        result.append((_rotated(model, keys), values))
    return result


def _rotated(model, keys: torch.Tensor) -> torch.Tensor:
    """By Hugging Face's own rotary embedding, at 0, 1, 2, ..."""
    cos, sin = model.model.rotary_emb(keys, torch.arange(len(keys))[None])
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return keys * cos[0][:, None] + turned * sin[0][:, None]


@torch.no_grad()
def answer(model, kv: list[tuple[torch.Tensor, torch.Tensor]], ids: list[int], predicted_tokens: int, n: int) -> list[int]:
    """Greedy tokens of the model where the first tokens' KV is given and the others are read."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(kv):
        own = [one[:predicted_tokens].transpose(0, 1)[None] for one in (keys, values)]
        cache.update(*own, number)
    tokens, said = ids[predicted_tokens:], []
    for _ in range(n):
        out = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        cache, tokens = out.past_key_values, [int(out.logits[0, -1].argmax())]
        said += tokens
    return said
