"""`python -m benchmarks.kv_prediction.second_stage RIDGE --out FOLDER`: trains a predictor on through the frozen target's loss.

The paper's second stage (arXiv 2410.08391, 3.2) with Hugging Face alone, for the shipped pair: the draft reads a sequence up
to a random place, the predictor says the target's keys and values up to there, the target continues; only the predictor learns.
"""

import argparse
import datetime
import json
import time
from pathlib import Path
from random import Random

import msgspec
import torch
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks import launch
from benchmarks.pair.batches import Sequences
from specprefill_sgl.methods.kv_prediction import predictor_file

_LENGTH, _REAL, _SIZE = 384, 96, 8  # tokens of a sequence, of its end that the target reads, sequences of a step
_TEXT = 0.2  # what a token that is no answer counts
_EVALUATE = 50  # steps


class Stage:
    """The pair, and a predictor's maps as parameters."""

    def __init__(self, folder: Path):
        self.about = predictor_file.about(str(folder))
        load = {"dtype": torch.float32, "attn_implementation": "sdpa"}
        self.target, self.draft = (
            AutoModelForCausalLM.from_pretrained(path, **load).eval().requires_grad_(False)
            for path in (launch.TARGET, launch.DRAFT)
        )
        weights = predictor_file.load_weights(str(folder))
        self.maps = {name: torch.nn.Parameter(tensor.float()) for name, tensor in weights.items()}

    def loss(self, ids: torch.Tensor, answers: torch.Tensor, cut: int, *, own: bool = False) -> tuple[torch.Tensor, float]:
        """Of the tokens after `cut`, and the share of the answers' tokens that are right; or with the target's `own` KV."""
        before = ids[:, :cut]
        cache = self.target(before, use_cache=True).past_key_values if own else self.predicted(before)
        positions = torch.arange(cut, ids.shape[1])[None].expand(len(ids), -1)
        logits = self.target(ids[:, cut:], past_key_values=cache, position_ids=positions).logits[:, :-1]
        wanted, are_answers = ids[:, cut + 1 :], answers[:, cut + 1 :]
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        counts = torch.where(are_answers, 1.0, _TEXT)
        right = (logits.argmax(-1) == wanted)[are_answers].float()
        return (each * counts).sum() / counts.sum(), float(right.mean()) if len(right) else float("nan")

    def predicted(self, ids: torch.Tensor) -> DynamicCache:
        """Keys and values of the whole sequences, as the target would have them."""
        cos, sin = self.target.model.rotary_emb(torch.zeros(1), torch.arange(ids.shape[1])[None])
        with torch.no_grad():
            read = self.draft(ids, use_cache=True).past_key_values.layers
            # the pair's rotary embeddings are the same; the draft's keys are freed of it by turning back
            layers = [torch.cat([_flat(_turned(one.keys, cos, -sin)), _flat(one.values)], dim=-1) for one in read]
        cache = DynamicCache()
        for layer, source in zip(self.about.predicted, self.about.sources, strict=True):
            features = torch.cat([layers[number] for number in source], dim=-1)
            keys, values = (
                F.linear(features, self.maps[f"{kind}.{layer}.weight"], self.maps[f"{kind}.{layer}.bias"])
                .unflatten(-1, (self.about.kv_heads, -1))
                .transpose(1, 2)
                for kind in ("key", "value")
            )
            cache.update(_turned(keys, cos, sin), values, layer)
        return cache


def _flat(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).flatten(2)


def _turned(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = keys.shape[-1] // 2
    return keys * cos + torch.cat([-keys[..., half:], keys[..., :half]], dim=-1) * sin


def _batch(sequences: Sequences, seed: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    random = Random(seed)
    ids, answers = sequences.batch(random, _SIZE, _LENGTH)
    cut = random.randrange(_LENGTH // 2, _LENGTH - _REAL)
    return ids[:, : cut + _REAL], answers[:, : cut + _REAL], cut


def train(stage: Stage, sequences: Sequences, minutes: float, rate: float, log: Path) -> dict:
    """Until the time is over, with a learning rate that falls to nothing by then; what the last evaluation said."""
    optimizer = torch.optim.AdamW(stage.maps.values(), lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    start, step, row = time.monotonic(), 0, {}
    held_out = [_batch(sequences, f"held out/{number}") for number in range(6)]
    with log.open("w") as file, tqdm(total=round(minutes * 60), unit="s", desc="second stage") as bar:
        file.write(json.dumps({"target's own KV": _evaluate(stage, held_out, own=True)}) + "\n")
        while (spent := (time.monotonic() - start) / 60) < minutes:
            if step % _EVALUATE == 0:
                row = {"step": step, "minutes": round(spent, 2), **_evaluate(stage, held_out)}
                file.write(json.dumps(row) + "\n")
                file.flush()
                bar.set_postfix(row)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 30) * (1 - spent / minutes)
            optimizer.zero_grad()
            loss, _ = stage.loss(*_batch(sequences, f"step/{step}"))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.maps.values(), 1.0)
            optimizer.step()
            step += 1
            bar.update(round(spent * 60) - bar.n)
        row = {"step": step, "minutes": minutes, **_evaluate(stage, held_out)}
        file.write(json.dumps(row) + "\n")
    return row


@torch.no_grad()
def _evaluate(stage: Stage, batches: list, *, own: bool = False) -> dict:
    found = [stage.loss(*batch, own=own) for batch in batches]
    loss, right = (sum(float(one[at]) for one in found) / len(found) for at in (0, 1))
    return {"loss": round(loss, 4), "answer_tokens_right": round(right, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_prediction.second_stage", description=__doc__)
    parser.add_argument("ridge", type=Path, help="a predictor from train-predictor, with the draft")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(launch.TARGET)
    sequences = Sequences(lambda piece: tokenizer.encode(piece, add_special_tokens=False))
    stage = Stage(arguments.ridge)
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = train(stage, sequences, arguments.minutes, arguments.rate, arguments.out / "loss.jsonl")
    second = {"date": datetime.date.today().isoformat(), "minutes": arguments.minutes, "rate": arguments.rate, **found}
    about = msgspec.structs.replace(
        stage.about, key_r2=(), value_r2=(), provenance={**stage.about.provenance, "second_stage": second}
    )
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in stage.maps.items()}
    predictor_file.save(arguments.out, about, weights)


if __name__ == "__main__":
    main()
