"""Model pairs for speed: configurations as files, weights made up by `--load-format dummy`; and two that were trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import launch, real_model

_MODELS = Path(__file__).parent / "models"
TOKENIZER = launch.TARGET  # any will do: prompts are ids that both vocabularies have
# for what depends on answers; the chat model has no smaller one, so its own first layers read
TRAINED: dict[str, Callable[[], tuple[Path, Path]]] = {
    "shipped": lambda: (launch.TARGET, launch.DRAFT),
    "smollm2": lambda: (real_model.folder(), real_model.folder()),
}


def names() -> list[str]:
    """Configurations of pairs without weights."""
    return sorted(path.stem for path in _MODELS.glob("*.json"))


def write(name: str, folder: Path, first_layers: int | None = None) -> tuple[Path, Path]:
    """Directories of the target and the draft, as Hugging Face lays them out, without weights.

    With `first_layers` the draft is the target with so many layers: what early-layers reads with. Trained ones lie where they
    are.
    """
    if name in TRAINED:
        return TRAINED[name]()
    pair = json.loads((_MODELS / f"{name}.json").read_text())
    if first_layers is not None:
        pair["draft"] = {**pair["target"], "num_hidden_layers": first_layers}
    for role in ("target", "draft"):
        (folder / role).mkdir(parents=True, exist_ok=True)
        (folder / role / "config.json").write_text(json.dumps(pair[role]))
        for file in TOKENIZER.glob("*token*.json"):
            shutil.copy(file, folder / role)
    return folder / "target", folder / "draft"
