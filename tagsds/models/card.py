"""The model card of an exported folder: README.md for people and hubs, rendered from the facts in card.json.

A card is written with each export and gains a row with each evaluation of the folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from transformers import CONFIG_MAPPING

from tagsds.errors import UserError
from tagsds.files import write_json, write_text
from tagsds.formats.shape import Any as AnyValue
from tagsds.formats.shape import Of, Table, read_object
from tagsds.provenance import commit, version

FACTS = "card.json"
COLUMNS = ("text_r1", "text_r5", "text_r10", "image_r1", "image_r5", "image_r10", "rsum")
SHAPE = {
    "kind": Of(str), "recipe?": Table(AnyValue), "data?": Table(AnyValue), "source?": Table(AnyValue), "notes?": [Of(str)],
    "recalls?": [{"dataset": Of(str), "figures": Table(Of(float))}], "commit?": (Of(str), None), "version?": (Of(str), None),
}  # fmt: skip


@dataclass
class Card:
    """Facts of a card. `kind` is the config's model_type; `recipe`, `data` and `source` are shown as tables; `recalls` is a row an
    evaluation: {dataset, figures}."""

    kind: str
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recalls: list[dict[str, Any]] = field(default_factory=list)
    commit: str | None = field(default_factory=commit)
    version: str | None = field(default_factory=version)

    def write(self, folder: Path) -> None:
        """card.json and README.md."""
        write_json(folder / FACTS, asdict(self))
        templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent.parent / "templates"), trim_blocks=True, autoescape=False
        )
        name = self.recipe.get("recipe") or self.source.get("file") or self.kind
        text = templates.get_template("card.md").render(
            **asdict(self), name=name, kind_text=kind_text(self.kind), columns=COLUMNS
        )
        write_text(folder / "README.md", text + "\n")

    def add_recalls(self, dataset: str, recalls: dict[str, float]) -> None:
        """The row of a dataset; an earlier one of the same name is replaced."""
        row = {"dataset": dataset, "figures": {key: recalls[key] for key in COLUMNS if key in recalls}}
        self.recalls = [*(r for r in self.recalls if r["dataset"] != dataset), row]


def kind_text(model_type: str) -> str:
    """The sentence of the model_type's config class (`summary`)."""
    known = model_type in CONFIG_MAPPING
    return str(getattr(CONFIG_MAPPING[model_type], "summary", model_type)) if known else model_type


def read_card(folder: Path) -> Card | None:
    """None where the folder has none, being older or another's."""
    path = folder / FACTS
    if not path.is_file():
        return None
    remedy = "remove it, or export again"
    facts = read_object(path, SHAPE, "the facts of a model card", remedy)
    if strange := sorted(facts.keys() - {field.name for field in fields(Card)}):
        raise UserError(f"{path} is not the facts of a model card ('{strange[0][:60]}' is none of them); {remedy}.")
    return Card(**facts)


def record_recalls(folder: Path, split: str, data: Path, results: dict[str, Any]) -> bool:
    """Add an evaluation's recalls to the card of a folder. False where there is no card, no recalls, or no right to write."""
    card = read_card(folder)
    if card is None or set(COLUMNS) - set(results.get("recalls", {})):
        return False
    card.add_recalls(f"{data.resolve().name} {split}, {results['images']} images", results["recalls"])
    try:
        card.write(folder)
    except OSError:
        return False
    return True
