"""The distillation loss against numbers worked by hand, and what it must leave alone."""

from __future__ import annotations

import math

import pytest
import torch

from tagsds.losses.distillation import distillation

ALL = torch.ones(1, 3, dtype=torch.bool)


def test_by_hand():
    # two teachers whose softmaxes are (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4): mean (3/8, 3/8, 1/4); the student's is (1/3, 1/3, 1/3)
    teachers = torch.tensor([[[2.0, 1.0, 1.0]], [[1.0, 2.0, 1.0]]]).log()
    student = torch.full((1, 3), 5.0)
    by_hand = 2 * 3 / 8 * math.log(9 / 8) + 1 / 4 * math.log(3 / 4)
    assert float(distillation(student, teachers, ALL)) == pytest.approx(by_hand, rel=1e-5)


def test_temperature_by_hand():
    # at t = 2 the teacher's logits (2 log 3, 0) count as (log 3, 0): softmax (3/4, 1/4); the student's (0, 0) as (1/2, 1/2)
    teacher = torch.tensor([[[2 * math.log(3.0), 0.0]]])
    by_hand = 4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))
    found = distillation(torch.zeros(1, 2), teacher, torch.ones(1, 2, dtype=torch.bool), temperature=2.0)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_a_slot_without_a_pair_adds_nothing_whatever_it_holds():
    student = torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.5, 0.0]], requires_grad=True)
    teachers = torch.randn(2, 2, 3)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    alone = [
        distillation(student[:1, :2], teachers[:, :1, :2], valid[:1, :2]),
        distillation(student[1:], teachers[:, 1:], valid[1:]),
    ]
    spoilt = teachers.clone()
    spoilt[:, 0, 2] = float("nan")
    found = distillation(student, spoilt, valid)
    assert float(found.detach()) == pytest.approx(float(sum(alone).detach()) / 2, rel=1e-5)
    found.backward()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad[0, 2] == 0


def test_the_student_that_agrees_has_neither_loss_nor_gradient_and_a_pair_without_negatives_neither():
    scores = torch.randn(4, 5, requires_grad=True)
    loss = distillation(scores, scores.detach()[None].clone(), torch.ones(4, 5, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6) and scores.grad is not None and scores.grad.abs().max() < 1e-6
    only_true = torch.tensor([[True, False, False]])
    assert float(distillation(torch.randn(1, 3), torch.randn(3, 1, 3), only_true)) == 0.0


def test_the_gradient_is_the_difference_of_the_softmaxes():
    student, teachers = torch.randn(3, 4, dtype=torch.float32, requires_grad=True), torch.randn(2, 3, 4)
    distillation(student, teachers, torch.ones(3, 4, dtype=torch.bool), temperature=1.5).backward()
    expected = 1.5 * ((student / 1.5).softmax(1) - (teachers / 1.5).softmax(2).mean(0)) / 3
    assert student.grad is not None and torch.allclose(student.grad, expected.detach(), atol=1e-6)
