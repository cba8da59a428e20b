"""What a training stage's objective is, as the loop of `train.py` sees it; the guide is docs/extend/objective.md.

The methods of the class are asked before the model is in DeepSpeed's hands, forward and `panel` of the instance after it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.formats.candidates import Candidates
from tagsds.negatives.offline import check_ranks
from tagsds.objectives.output import StepOutput


class Objective(nn.Module):
    """Base of all objectives, an nn.Module around the model: `OBJECTIVES[name](model, config, vocab, scorer)`. A new one defines
    `__init__` and `forward`; everything else has the default of a stage that draws nothing and shows nothing.

    `config` is the run's settings (a `RunConfig`); an objective reads its own groups of it.

    trains          the model it is around: a key of `tagsds.prepare.BUILDERS`
    ranks           trains what ranks images and captions, so that a validation measures it
    keeps_examples  the run leaves examples.json: the last scores of the log's histograms, and `panel` of the first dev captions
    """

    trains: ClassVar[str] = "encoder"
    ranks: ClassVar[bool] = True
    keeps_examples: ClassVar[bool] = False

    def __init__(self, model: Any, config: Any, vocab: Vocabulary, scorer: Any) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def check(cls, config: Any) -> None:
        """UserError for settings that mean nothing in this stage or contradict each other, before anything is loaded."""

    @classmethod
    def advice(cls, config: Any) -> list[str]:
        """Warnings, a line each, of settings that can be trained with and hardly do what they seem to."""
        return []

    @classmethod
    def heads(cls, config: Any) -> list[str]:
        """The heads of the model that the stage trains; the export names them as trained."""
        return []

    @classmethod
    def prepare(cls, model: Any, config: Any) -> list[str]:
        """Before the optimiser is built: freeze what the stage leaves alone, begin new heads. What was begun, for the log. Draws
        nothing from the global random generators: all ranks must begin alike."""
        return []

    @classmethod
    def needs_classes(cls, config: Any) -> bool:
        """Whether the bank must hold the regions' soft labels, which are as large as the features."""
        return False

    @classmethod
    def needs_candidates(cls, config: Any) -> bool:
        """Whether forward draws from the offline candidates (`offline.candidates`)."""
        return False

    @classmethod
    def check_candidates(cls, config: Any, candidates: Candidates) -> None:
        """UserError where the candidates do not reach the ranks that the settings draw from."""
        check_ranks(candidates, config.offline.first, config.offline.last, 1)

    @classmethod
    def random_negatives(cls, config: Any) -> int:
        """How many other images, and captions of other images, a true pair is held against at random: the bank must hold them."""
        return 0

    def forward(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None = None) -> StepOutput:
        """Loss of a micro-batch of true pairs (captions int64 [B], numbers in the bank). Every trained parameter takes part, every
        draw comes from `draw`. `candidates` of the bank's split, where `needs_candidates`."""
        raise NotImplementedError

    def panel(self, bank: Bank, captions: Tensor, draw: Draw, tokenizer: Any) -> list[dict[str, Any]] | None:
        """Examples for people to read, for the text panel and examples.json (`retrieval/examples.py`); None where there are none.
        Collective under ZeRO-3: all ranks call it with the same captions (int64 [B])."""
        return None
