"""Linear support vector machines: margins by hand, parity with scikit-learn, hard negatives."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC
from torch import Tensor

from trainers.blocks.svm import REFUSED, LinearSVM, fit_mining, fit_svm, hardest, hinge, margins


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_hinges_are_those_worked_out_by_hand() -> None:
    scores_NK = torch.tensor([[2.0, -0.5], [0.25, -3.0]])
    labels_N = torch.tensor([0, REFUSED])
    assert margins(scores_NK, labels_N).tolist() == [[2.0, 0.5], [-0.25, 3.0]]
    loss = hinge(scores_NK, labels_N)
    assert float(loss.total) == pytest.approx(0 + 0.5 + 1.25 + 0)
    assert loss.number == 2


def test_workers_together_have_the_gradient_of_one() -> None:
    x_NF, labels_N = torch.randn(12, 5), torch.randint(-1, 3, (12,))
    model = LinearSVM(5, 3)
    torch.nn.init.normal_(model.linear.weight)

    def gradient(parts: list[slice]) -> Tensor:
        model.zero_grad()
        terms = [hinge(model(x_NF[part]), labels_N[part]) for part in parts]
        number = sum(float(term.number) for term in terms)
        for term in terms:
            (term.total / number).backward()
        assert model.linear.weight.grad is not None
        return model.linear.weight.grad.clone()

    shards = gradient([slice(0, 3), slice(3, 12)])
    torch.testing.assert_close(shards, gradient([slice(0, 12)]))


def test_it_names_digits_as_well_as_scikit_learn() -> None:
    x, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    train, test = slice(0, 1200), slice(1200, None)
    ours = fit_svm(x[train], labels[train], 10)
    theirs = LinearSVC(C=1.0).fit(x[train].numpy(), labels[train].numpy())
    score = float((ours(x[test]).argmax(1) == labels[test]).float().mean())
    reference = theirs.score(x[test].numpy(), labels[test].numpy())
    assert score == pytest.approx(reference, abs=0.01) and score > 0.9


def test_it_ranks_by_the_best_class_and_finds_the_hardest() -> None:
    model = LinearSVM(2, 2)
    model.linear.weight.data = torch.eye(2)
    x_NF = torch.tensor([[-1.0, -1.0], [0.0, 3.0], [1.0, 0.0]])
    assert model.rank(x_NF).tolist() == [1, 2, 0]
    assert hardest(model(x_NF), 2).tolist() == [1, 2]


def test_hard_negatives_lower_the_false_alarms() -> None:
    def rings(radius: float, count: int) -> Tensor:
        turn = torch.rand(count) * 6.3
        return torch.stack([turn.cos(), turn.sin()], 1) * radius + 0.2 * torch.randn(count, 2)

    good = rings(0.5, 40) + torch.tensor([3.0, 0.0])
    easy = rings(1.0, 40) - torch.tensor([4.0, 0.0])
    near = [rings(0.4, 400) + torch.tensor([1.2, 0.0]) for _ in range(4)]
    x_NF = torch.cat([good, easy])
    labels_N = torch.tensor([0] * len(good) + [REFUSED] * len(easy))
    without = fit_svm(x_NF, labels_N, 1)
    mined = fit_mining((x_NF, labels_N), near.__getitem__, 3, 1)
    alarms, fewer = (int((model(near[3]) > 0).sum()) for model in (without, mined))
    assert fewer < alarms / 4
    assert float((mined(good) > 0).float().mean()) > 0.8
