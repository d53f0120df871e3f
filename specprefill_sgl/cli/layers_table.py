"""`calibrate MODEL --layers`: what each number of first layers keeps, what it costs, and which to take."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from specprefill_sgl.calibration import first_layers
from specprefill_sgl.calibration.first_layers import Kept
from specprefill_sgl.calibration.kinds import Known
from specprefill_sgl.config import flag

_LEGEND = """f: k of all layers. bound: of the speed-up, 1 / (f + keep ratio), where each token costs the same.
overlap: share of what the whole model chooses that k layers choose too. found: share of the evidence that is kept.
heads: of the first k layers, calibrated by other prompts than those measured. last quarter: of these layers, all heads.
The last line: all layers, which vote as first layers do."""


def report(model: Any, tokenizer: Any, material: Sequence[Known], *, heads: int, ratios: Sequence[float], name: str) -> str:
    """A table for each keep ratio, and the proposal.

    Raises
    ------
    ValueError
        If the prompts do not hold their evidence, or are too few, or none of the first layers attends to a whole prompt.
    """
    readings = [first_layers.take(model, tokenizer, known) for known in tqdm(material, desc="prompts")]
    layers = model.config.get_text_config().num_hidden_layers
    below = first_layers.depths(readings[0], layers)
    chosen = first_layers.chosen_heads(readings, below, heads)
    tables = {}
    for ratio in ratios:
        pairs = tqdm(zip(readings, chosen, strict=True), desc=f"keep ratio {ratio:g}", total=len(readings))
        tables[ratio] = first_layers.mean(readings, [first_layers.kept(reading, below, own, ratio) for reading, own in pairs])
    tokens = sum(one.found.tokens for one in readings) / len(readings)
    about = f"{len(readings)} prompts of {tokens:.0f} tokens on average.\n{_LEGEND}"
    ks = list(below)
    return "\n\n".join([about, *(_table(ks, *one) for one in tables.items()), _proposal(ks, list(tables.values()), name)])


def _table(ks: Sequence[int], ratio: float, kept: Kept) -> str:
    lines = [
        f"keep ratio {ratio:g}; the whole model, with heads and lookahead, finds {kept.whole:.2f}",
        "                 |     heads      |  last quarter",
        "  k     f  bound | overlap  found | overlap  found",
    ]
    for k, row in zip(ks, kept.first.reshape(len(ks), 4), strict=True):
        cost = k / ks[-1]
        by_heads, by_quarter = ("{:7.2f} {:6.2f}".format(*row[at : at + 2]) for at in (0, 2))
        lines.append(f"{k:3d}  {cost:.2f}  {1 / (cost + ratio):5.2f} | {by_heads} | {by_quarter}")
    return "\n".join(lines)


def _proposal(ks: Sequence[int], tables: Sequence[Kept], name: str) -> str:
    found = np.mean([kept.first[:, :, 1] for kept in tables], axis=0)  # [depths, 2]
    k, plain = (first_layers.plateau(dict(zip(ks[:-1], one[:-1], strict=True)), ks[-1]) for one in found.T)
    with_heads, without = found[ks.index(k), 0], found[ks.index(plain), 1]
    return (
        f"Proposed: {flag('method')} early-layers {flag('layers')} {k} {flag('heads')} heads.json, the file that\n"
        f"`calibrate {name} --layers {k} --out heads.json` writes. It finds {with_heads:.2f}, the whole model "
        f"{np.mean([kept.whole for kept in tables]):.2f}. Without heads: {flag('layers')} {plain}, which finds {without:.2f}.\n"
        "(Means over the keep ratios. The fewest that, like the next two, are within 95 % of the best up to 3/4 of the layers.)"
    )
