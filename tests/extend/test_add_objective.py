"""An objective added from outside, as docs/extend/objective.md shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.pairs import Pairs
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.models.uniter import Layout
from tagsds.models.uniter.initialise import HEADS
from tagsds.objectives import OBJECTIVES, Objective, StepOutput
from tagsds.objectives.heads import begin_stage
from tagsds.scoring.registry import scorer_of
from tests.small_world import model_of, one_pair

GUIDE = Path(__file__).parents[2] / "docs" / "extend" / "objective.md"


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> type[Objective]:
    """The class of the guide, registered."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)[0]
    names = dict(Objective=Objective, StepOutput=StepOutput, Pairs=Pairs, Layout=Layout, torch=torch, begin_stage=begin_stage)
    exec(code, names)
    made: type[Objective] = names["Closeness"]
    monkeypatch.setitem(OBJECTIVES, "closeness", made)
    return made


def test_a_recipe_may_name_it(added: type[Objective]) -> None:
    assert load_config("published-base", ["objective=closeness"]).objective == "closeness"
    with pytest.raises(UserError, match=r"objective 'closenes': .*closeness"):
        load_config("published-base", ["objective=closenes"])


def test_it_trains_the_rank_head_alone(added: type[Objective], world: Path) -> None:
    config = load_config("published-base", ["objective=closeness"])
    bank, manifest = load_bank(world, "train")
    model = model_of(manifest).eval()
    kind = OBJECTIVES["closeness"]
    assert kind.prepare(model, config) == []
    trained = {head for head in HEADS for name, p in model.get_submodule(head).named_parameters()
               if p.requires_grad and not name.endswith("decoder.weight")}  # fmt: skip
    assert trained == {"rank"}  # a decoder's weight is the word embeddings, which the encoder trains
    objective = kind(model, config, Vocabulary.of(load_tokenizer(world / "tokenizer")), scorer_of(model))
    captions = torch.tensor([3, 8, 20])
    output = objective(bank, captions, Draw(1, 0, 0))
    words = [bank.text_table(caption[None]).values for caption in captions]
    images = bank.image_of_caption[captions].tolist()
    with torch.no_grad():
        alone = [float(torch.sigmoid(scorer_of(model)(one_pair(bank, ids, image)))) for ids, image in zip(words, images)]
    assert float(output.total.detach()) == pytest.approx(1 - sum(alone) / 3, abs=1e-6)
    assert output.forwards == 3
    output.total.backward()
    assert model.rank.weight.grad is not None


def test_what_it_leaves_open_has_defaults(added: type[Objective]) -> None:
    config = load_config("published-base", ["objective=closeness"])
    answers = added.needs_classes(config), added.needs_candidates(config), added.random_negatives(config)
    assert answers == (False, False, 0) and added.ranks and not added.keeps_examples
