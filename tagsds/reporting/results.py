"""The results file of an evaluation: a sample of rankings, the distribution of scores, and where the numbers come from.

Shapes: I = images, C = captions.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.errors import UserError
from tagsds.files import sha256_of, write_text
from tagsds.provenance import commit, version

FORMAT, VERSION = "tagsds-results", 1


def ranking_examples(
    scores: Tensor, image_of_caption: Tensor, bank: Bank, captions: Tensor, count: int = 8, top: int = 5
) -> list[dict[str, Any]]:
    """The `top` images of a few captions, taken at even distances from the split and not for their result.

    scores [I, C]; image_of_caption int64 [C]; captions int64 [C], numbers in the bank. Image i is the bank's image i.
    Ranks count from 1 and ties against the true image, as in `metrics.ranks`.
    """
    examples = []
    for column in torch.linspace(0, scores.shape[1] - 1, min(count, scores.shape[1])).long().tolist():
        row, image = scores[:, column], int(image_of_caption[column])
        order = torch.sort(row, descending=True, stable=True).indices[:top].tolist()
        others = torch.arange(len(row), device=row.device) != image
        examples.append(
            {
                "caption": bank.texts[int(captions[column])],
                "image": bank.keys[image],
                "rank": 1 + int(((row >= row[image]) & others).sum()),
                "score": float(row[image]),
                "top": [{"image": bank.keys[i], "score": float(row[i]), "true": i == image} for i in order],
            }
        )
    return examples


def score_histogram(
    scores: Tensor, image_of_caption: Tensor, bins: int = 60, unit: str = "ranking logit"
) -> dict[str, Any]:
    """Counts of the scores (in `unit`) of true and of all other pairs over the same `bins` (edges: bins + 1)."""
    low, high = float(scores.min()), float(scores.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    columns = torch.arange(scores.shape[1], device=scores.device)
    true = scores[image_of_caption.to(scores.device), columns].float()
    of_true = torch.histc(true, bins, low, high).long()
    of_all = torch.stack([torch.histc(part.float(), bins, low, high).long() for part in scores.split(256)]).sum(0)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    other = (of_all - of_true).tolist()
    return {"unit": unit, "edges": edges.tolist(), "true": of_true.tolist(), "other": other}


def provenance(checkpoint: Path | None, data: Path | None, **settings: Any) -> dict[str, Any]:
    """Enough to run the evaluation again: files, settings, versions, machine."""
    weights = checkpoint / "model.safetensors" if checkpoint else None
    return {
        "checkpoint": str(checkpoint.resolve()) if checkpoint else None,
        "weights_sha256": sha256_of(weights) if weights and weights.is_file() else None,
        "data": str(data.resolve()) if data else None,
        "manifest_sha256": sha256_of(data / "manifest.json") if data else None,
        **settings,
        "tagsds": version(),
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.node()}, {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Atomic: the file is either the old one or complete."""
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A file of `write_results`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); evaluate again with tagsds-evaluate.") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise UserError(f"{path} is not a results file of tagsds-evaluate; evaluate again, or move the file away.")
    if results.get("version") != VERSION:
        raise UserError(f"{path} has version {results.get('version')}, this program reads {VERSION}; evaluate again.")
    return results
