"""Fits a predictor in the scheduler process that would serve it, through the same models, pools and features.

It is done where other methods are checked, before the server is up; so the server that is up has a predictor.
"""

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
        about, device = self._plan.about, torch.device(self._target.device)
        layers = attention.layers(self._target.model)
        sums: dict[tuple[int, str, bool], Sums] = {}
        for number, ids in enumerate(tqdm(_pieces(self._plan.pieces), desc="train-predictor, pieces of text")):
            is_held_out = number % _HELD_OUT == _HELD_OUT - 1
            prompt = Prompt(ids=ids, keep_ratio=1.0, rule=_READING)
            positions = torch.arange(len(ids), device=device)
            features = self._read_by_auxiliary(prompt, positions)
            tree = prefix_cache(self._target, self._model.page_size, disable=True)
            group = PromptGroup(self._target, _Nothing(), tree, [prompt], chunk_tokens=self.chunk_tokens)  # type: ignore[arg-type]
            slots = _slots(group)
            for at, layer in enumerate(about.predicted):
                own = features[about.sources[at]]
                for kind, wanted in zip(("key", "value"), plain(self._target, layers[layer], slots, positions), strict=True):
                    numbers = wanted.flatten(1)
                    key = (layer, kind, is_held_out)
                    if key not in sums:
                        sums[key] = Sums(own.shape[1], numbers.shape[1], device)
                    sums[key].add(own, numbers)
            group.release()
        self._write(sums)

    def _read_by_auxiliary(self, prompt: Prompt, positions: torch.Tensor) -> Mapping[tuple[int, ...], torch.Tensor]:
        group = self._model.begin([prompt])
        features = self._features.of(self._plan.about.sources, _slots(group), positions)
        group.release()
        self._model.clear()
        return features

    def _write(self, sums: Mapping[tuple[int, str, bool], Sums]) -> None:
        about, weights = self._plan.about, {}
        explained: dict[str, list[float]] = {"key": [], "value": []}
        for layer in tqdm(about.predicted, desc="train-predictor, layers solved"):
            for kind, scores in explained.items():
                weight, bias = sums[layer, kind, False].solve(self._plan.ridge)
                scores.append(round(sums[layer, kind, True].explained(weight, bias), 4))
                weights[f"{kind}.{layer}.weight"] = weight.cpu().to(getattr(torch, self._plan.dtype))
                weights[f"{kind}.{layer}.bias"] = bias.cpu().to(getattr(torch, self._plan.dtype))
        about = msgspec.structs.replace(about, key_r2=tuple(explained["key"]), value_r2=tuple(explained["value"]))
        predictor_file.save(Path(self._plan.out), about, weights)


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
