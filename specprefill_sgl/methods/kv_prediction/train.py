"""Fits a predictor in the scheduler process that would serve it, through the same models, pools and features.

It is done where other methods are checked, before the server is up; so the server that is up has a predictor.
"""

import itertools
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from specprefill_sgl.methods.kv_prediction import attention, predictor_file
from specprefill_sgl.methods.kv_prediction.features import Features, plain
from specprefill_sgl.methods.kv_prediction.plan import Plan
from specprefill_sgl.methods.kv_prediction.predictor_file import Source
from specprefill_sgl.methods.kv_prediction.ridge import Sums
from specprefill_sgl.methods.model_method import ModelMethod
from specprefill_sgl.models.group import PromptGroup
from specprefill_sgl.models.prefix_cache import prefix_cache
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.rule import Rule

_READING = Rule(lookahead=1)
_HELD_OUT = 10  # one piece of so many tells how well it went


class Training(ModelMethod):
    """A `Method` that writes the file it would need to serve; `check` does it."""

    def prepare(self, target: Any, features: Features, wanted: Plan) -> "Training":
        """Give it what it reads, and what for."""
        self._target, self._features, self._plan = target, features, wanted
        return self

    @staticmethod
    def adapted(rule: Rule) -> Rule:
        """Nobody votes."""
        return _READING

    def refuses(self, _prompt: Prompt) -> str | None:
        """It serves nobody, but for the first prompt."""
        return None

    def check(self) -> None:
        """Read all pieces with both models, solve, write the file."""
        with torch.no_grad():
            self._train()

    def _train(self) -> None:
        sums: dict[tuple[Source, bool], Sums] = {}
        for number, ids in enumerate(tqdm(_pieces(self._plan.pieces), desc="train-predictor, pieces of text")):
            prompt = Prompt(ids=ids, keep_ratio=1.0, rule=_READING)
            positions = torch.arange(len(ids), device=self._target.device)
            features = self._read_by_auxiliary(prompt, positions)
            wanted = self._read_by_target(prompt, positions)
            for source, own in features.items():
                key = (source, number % _HELD_OUT == _HELD_OUT - 1)
                if key not in sums:
                    sums[key] = Sums(own.shape[1], wanted[source].shape[1], positions.device)
                sums[key].add(own, wanted[source])
        self._write(sums)

    def _layers_of(self, source: Source) -> list[int]:
        """The target's layers that are computed from it."""
        about = self._plan.about
        return [layer for layer, own in zip(about.predicted, about.sources, strict=True) if own == source]

    def _read_by_target(self, prompt: Prompt, positions: torch.Tensor) -> dict[Source, torch.Tensor]:
        """For each source what its layers are to be, keys before values, layer after layer: [tokens, numbers]."""
        layers = attention.layers(self._target.model)
        tree = prefix_cache(self._target, self._model.page_size, disable=True)
        group = PromptGroup(self._target, _Nothing(), tree, [prompt], chunk_tokens=self.chunk_tokens)  # type: ignore[arg-type]
        slots = _slots(group)
        wanted = {
            source: torch.cat(
                [
                    one.flatten(1)
                    for layer in self._layers_of(source)
                    for one in plain(self._target, layers[layer], slots, positions)
                ],
                dim=1,
            )
            for source in dict.fromkeys(self._plan.about.sources)
        }
        group.release()
        return wanted

    def _read_by_auxiliary(self, prompt: Prompt, positions: torch.Tensor) -> Mapping[tuple[int, ...], torch.Tensor]:
        group = self._model.begin([prompt])
        features = self._features.of(self._plan.about.sources, _slots(group), positions)
        group.release()
        self._model.clear()
        return features

    def _write(self, sums: Mapping[tuple[Source, bool], Sums]) -> None:
        about, dtype = self._plan.about, getattr(torch, self._plan.dtype)
        sizes = {"key": about.kv_heads * about.head_dim, "value": about.kv_heads * about.value_dim}
        weights: dict[str, torch.Tensor] = {}
        explained: dict[tuple[str, int], float] = {}
        for source in tqdm(dict.fromkeys(about.sources), desc="train-predictor, regressions"):
            weight, bias = sums[source, False].solve(self._plan.ridge)
            begin = 0
            for layer, kind in itertools.product(self._layers_of(source), sizes):
                part = slice(begin, begin := begin + sizes[kind])
                explained[kind, layer] = round(sums[source, True].explained(weight, bias, part), 4)
                weights[f"{kind}.{layer}.weight"] = weight[part].cpu().to(dtype)
                weights[f"{kind}.{layer}.bias"] = bias[part].cpu().to(dtype)
        keys, values = (tuple(explained[kind, layer] for layer in about.predicted) for kind in sizes)
        predictor_file.save(Path(self._plan.out), msgspec.structs.replace(about, key_r2=keys, value_r2=values), weights)


class _Nothing:
    """In the place of a `QueryCapture`: no queries are wanted of the target."""

    def arm(self, _rows: Any) -> None:
        """Nothing is recorded."""

    def disarm(self) -> dict[int, torch.Tensor]:
        """Nothing was."""
        return {}


def _slots(group: PromptGroup) -> torch.Tensor:
    """Of the only prompt, once it is read."""
    while not group.step():
        pass
    recording = group.drafted()[0]
    assert recording is not None
    return recording.slots


def _pieces(path: str) -> list[array]:
    with np.load(path) as archive:
        ends = archive["lengths"].cumsum()
        return [array("q", part.tolist()) for part in np.split(archive["ids"], ends[:-1])]
