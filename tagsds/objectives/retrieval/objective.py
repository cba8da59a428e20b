"""Fine-tuning as a list of loss terms over one packed forward (TAGS-DC, arXiv 2111.03349; AOQ, arXiv 2003.03669).

Baseline = t2i + i2t; TAGS adds syn and mlm; TAGS-DC adds disc and corr; AOQ adds the quintuplet. Negatives are drawn without
gradient; then ONE forward with gradient covers all that the terms ask for, so that DeepSpeed sees one forward and one backward a
micro-batch.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw, seed_of
from tagsds.errors import UserError, nearest
from tagsds.formats.candidates import Candidates
from tagsds.models.uniter import UniterModel
from tagsds.negatives.offline import check_ranks, needs_candidates
from tagsds.objectives.heads import begin_stage
from tagsds.objectives.output import StepOutput
from tagsds.objectives.protocol import Objective
from tagsds.objectives.retrieval.draws import Draws, Negatives
from tagsds.objectives.retrieval.examples import written_examples
from tagsds.objectives.retrieval.forward import Plan
from tagsds.objectives.retrieval.settings import Settings
from tagsds.objectives.retrieval.terms import (
    CASCADE_WEIGHT,
    TERMS,
    Distillation,
    Quintuplet,
    Teachers,
    Term,
    WrittenDistillation,
    load_teachers,
)
from tagsds.scoring.scorer import Scorer


def loss_terms(config: Settings) -> list[tuple[float, Term]]:
    """(weight, term) of a stage. syn is among them whenever sentences are written: it counts what the filters leave."""
    loss = config.loss
    weights = {"t2i": loss.t2i, "i2t": loss.i2t}
    if loss.writes:
        weights |= {"syn": loss.syn} | {n: w for n, w in {"mlm": loss.mlm, "disc": loss.disc, "corr": loss.corr}.items() if w}
    if config.negatives.cascade:
        weights["cascade"] = CASCADE_WEIGHT
    elif "cascade" in loss.more:
        raise UserError("loss.more.cascade weighs the probe of cascade mining, which negatives.cascade=0 leaves out; remove it.")
    for name in loss.more:
        if name not in TERMS:
            raise UserError(f"loss.more.{name}: there is no such term; {nearest(name, TERMS)}")
    terms = [(weight, TERMS[name](loss)) for name, weight in (weights | loss.more).items()]
    if config.quintuplet.kind:
        terms.append((config.quintuplet.weight, Quintuplet(config.quintuplet)))
    return terms


def taught_terms(config: Settings, student: Any) -> list[tuple[float, Term]]:
    """(weight, term) of the teachers, where there are some; `student` is the encoder's config."""
    distil = config.distil
    if not distil.teachers:
        return []
    teachers = Teachers(load_teachers(distil.teachers, student))
    terms: list[tuple[float, Term]] = [(distil.weight, Distillation(distil, teachers))]
    if distil.synthetic:
        terms.append((distil.synthetic, WrittenDistillation(distil.temperature, teachers)))
    return terms


def frozen(model: UniterModel) -> UniterModel:
    """A copy that no optimiser sees and no checkpoint holds: a resumed run makes it again from `init`, before it loads its weights.
    UserError at ZeRO 3, where no rank has the weights whole."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise UserError("synthetic.writer=frozen copies the encoder, which is in parts at ZeRO stage 3; take a lower stage.")
    return copy.deepcopy(model).requires_grad_(False)


class RetrievalObjective(Objective):
    """forward(bank, captions int64 [B], draw, candidates) -> StepOutput; `candidates` of the bank's split, where needed."""

    keeps_examples: ClassVar[bool] = True

    def __init__(self, model: UniterModel, config: Settings, vocab: Vocabulary, scorer: Scorer) -> None:
        super().__init__(model, config, vocab, scorer)
        self.scorer, self.vocab = scorer, vocab
        self.config = config
        self.terms = loss_terms(config)
        self.terms += taught_terms(config, model.config)
        writer = model if config.synthetic.writer != "frozen" else frozen(model)
        self.negatives = Negatives(config.negatives, config.synthetic, config.offline, vocab, model, scorer, writer)

    @classmethod
    def heads(cls, config: Settings) -> list[str]:
        """The heads this stage trains."""
        return ["rank", *dict.fromkeys(head for _, term in loss_terms(config) for head in term.heads)]

    @classmethod
    def prepare(cls, model: Any, config: Any) -> list[str]:
        """`config.seed` is that of the run. A probe is added for cascade mining where the checkpoint brings none."""
        begun = []
        if config.negatives.cascade and not model.config.probe_queries:
            model.add_probe(seed_of(config.seed, "probe"))
            begun.append("probe")
        return [*begin_stage(model, cls.heads(config)), *begun]

    @classmethod
    def check(cls, config: Any) -> None:
        for key, what in {"synthetic": "written sentences", "offline": "offline candidates"}.items():
            if getattr(config.distil, key) and not config.distil.teachers:
                raise UserError(f"distil.{key} gives teachers {what} to judge; name them in distil.teachers.")
        if config.distil.synthetic and not config.loss.writes:
            raise UserError("distil.synthetic judges written sentences, and none is written; set loss.syn or loss.mlm above zero.")
        if config.negatives.cascade and config.offline.replace_random:
            raise UserError("negatives.cascade narrows random negatives; set offline.replace_random=false or negatives.cascade=0.")

    @classmethod
    def advice(cls, config: Settings) -> list[str]:
        loss = config.loss
        if not config.distil.teachers or not loss.syn or loss.t2i or loss.i2t or config.quintuplet.kind:
            return []
        return [
            "warning: without loss.t2i and loss.i2t the softmax of distil.teachers leaves the level of the scores free, and as "
            f"they rise the hinge of loss.syn loses its gradient; set loss.syn=0 loss.more.contrast_syn={loss.syn:g}."
        ]

    @classmethod
    def needs_candidates(cls, config: Settings) -> bool:
        return needs_candidates(config.quintuplet, config.offline, config.distil.offline)

    @classmethod
    def check_candidates(cls, config: Settings, candidates: Candidates) -> None:
        drawn = config.negatives.count if config.offline.score else config.negatives.keep
        drawn = drawn if config.offline.replace_random else 1
        check_ranks(candidates, config.offline.first, config.offline.last, max(drawn, config.distil.offline))

    @classmethod
    def random_negatives(cls, config: Settings) -> int:
        return 0 if config.negatives.shared or config.offline.replace_random else config.negatives.count

    @property
    def writes(self) -> bool:
        """Whether the encoder writes negative sentences."""
        return self.config.loss.writes

    def panel(self, bank: Bank, captions: Tensor, draw: Draw, tokenizer: Any) -> list[dict[str, Any]] | None:
        """The hardest sentences written for each caption."""
        if not self.writes:
            return None
        return written_examples(Draws(self.negatives, bank, captions, draw), self.config, tokenizer)

    def forward(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None = None) -> StepOutput:
        draws = Draws(self.negatives, bank, captions, draw, candidates)
        plan = Plan(bank)
        true_pairs = plan.captions(captions, draws.images)
        asked = [term.ask(draws, plan, true_pairs) for _, term in self.terms]
        states = plan.encode(self.model)
        true = states.scores(true_pairs)
        found = [term.value(what, draws, states, true) for what, (_, term) in zip(asked, self.terms, strict=True)]

        total = sum(weight * out.loss for (weight, _), out in zip(self.terms, found, strict=True))
        assert isinstance(total, Tensor)
        output = StepOutput(total, {})
        output.scores["true"] = true.detach()
        for out in found:
            output.terms |= out.losses
            output.counters |= out.counters
            output.scores |= out.scores
        output.forwards = draws.forwards + len(states.pairs)
        return output
