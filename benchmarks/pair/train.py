"""Trains one model of the pair; stopped at any time, it goes on from its last checkpoint and ends with the same weights."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from benchmarks.pair import seeding
from benchmarks.pair.batches import Sequences
from benchmarks.pair.shapes import Shape

_CHECKPOINT_STEPS = 100
_WARMUP = 50
_LANGUAGE_SHARE, _LANGUAGE_WEIGHT = 0.12, 0.3  # of the tokens that are no answers: how many are predicted, how much they count


@dataclass(frozen=True)
class Stage:
    """`steps` batches of `size` sequences of `length` tokens, with a mixture of questions."""

    steps: int
    size: int
    length: int
    mixture: str = "even"


@dataclass(frozen=True)
class Run:
    """Stages under one learning rate schedule: warm-up, constant `rate`, then linear to nothing over the last third."""

    rate: float
    stages: list[Stage]

    def plan(self) -> list[tuple[Stage, float]]:
        """Stage and learning rate of every step."""
        steps = [stage for stage in self.stages for _ in range(stage.steps)]
        return [(stage, self.rate * _factor(step, len(steps))) for step, stage in enumerate(steps)]


def train(shape: Shape, runs: list[Run], sequences: Sequences, folder: Path) -> torch.nn.Module:
    """The trained model in float32; `folder` gets checkpoint.pt and log.jsonl."""
    model = seeding.seeded(shape)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    done, seconds = _resume(folder, model, optimizer)
    plan = [step for run in runs for step in run.plan()]
    with (folder / "log.jsonl").open("a" if done else "w") as log, tqdm(total=len(plan), initial=done, desc=folder.name) as bar:
        for step in range(done, len(plan)):
            start = time.perf_counter()
            stage, rate = plan[step]
            for group in optimizer.param_groups:
                group["lr"] = rate
            row = _step(model, optimizer, sequences, stage, Random(f"{shape.seed}/{step}"))
            seconds += time.perf_counter() - start
            log.write(json.dumps({"step": step, "length": stage.length, "seconds": round(seconds, 1), **row}) + "\n")
            log.flush()
            bar.update()
            bar.set_postfix({name: f"{value:.2f}" for name, value in row.items()}, refresh=False)
            if (step + 1) % _CHECKPOINT_STEPS == 0 or step + 1 == len(plan):
                _save(folder, model, optimizer, step + 1, seconds)
    return model


def _step(model, optimizer, sequences: Sequences, stage: Stage, random: Random) -> dict[str, float]:
    ids, answers = sequences.batch(random, stage.size, stage.length, stage.mixture)
    generator = torch.Generator().manual_seed(random.getrandbits(40))
    language = (torch.rand(ids.shape, generator=generator) < _LANGUAGE_SHARE) & ~answers
    language[:, 0] = False
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        of_answers, found = _loss(model, hidden, ids, answers)
        of_language, _ = _loss(model, hidden, ids, language)
        loss = of_answers + _LANGUAGE_WEIGHT * of_language
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    first = answers[:, 1:] & ~answers[:, :-1]
    right = found[first[answers[:, 1:]]].float().mean()
    return {"answers": of_answers.item(), "language": of_language.item(), "first_right": right.item()}


def _loss(model, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the masked tokens, and which of them were predicted right."""
    chosen, wanted = hidden[mask[:, 1:]], ids[mask]
    logits = chosen @ model.lm_head.weight.to(chosen.dtype).T
    return F.cross_entropy(logits.float(), wanted), logits.argmax(-1) == wanted


def _factor(step: int, steps: int) -> float:
    """Share of the full learning rate."""
    return min(1.0, (step + 1) / _WARMUP, max(0.02, (steps - step) / (steps / 3)))


def _resume(folder: Path, model, optimizer) -> tuple[int, float]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    lines = (folder / "log.jsonl").read_text().splitlines()[: saved["step"]]
    (folder / "log.jsonl").write_text("".join(line + "\n" for line in lines))
    return saved["step"], saved["seconds"]


def _save(folder: Path, model, optimizer, step: int, seconds: float) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, folder / "checkpoint.pt.new")
    (folder / "checkpoint.pt.new").replace(folder / "checkpoint.pt")
