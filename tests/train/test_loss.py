"""The loss of a recipe against PyTorch's and the published formulas, and in whole runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import SMALL, check_same, net, rows
from sklearn.utils.class_weight import compute_class_weight

from spem.data.batches import Batches
from spem.data.dataset import load_dataset
from spem.train.fitting import fit
from spem.train.loss import Loss, balance, to_labels, to_shares
from spem.train.recipe import Recipe

CLASSES = 7
LABELS = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 6])
KINDS = [
    (loss, smoothing, weighted)
    for loss in ("ce", "bce")
    for smoothing in (0.0, 0.1)
    for weighted in (False, True)
]


@pytest.fixture
def logits():
    return torch.randn(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(0)) * 3


def loss_of(loss, smoothing, weighted):
    weights = balance(LABELS, list("abcdefg")) if weighted else None
    return Loss(Recipe(loss=loss, label_smoothing=smoothing), weights), weights


@pytest.mark.parametrize(("loss", "smoothing", "weighted"), KINDS)
def test_labels_and_their_shares_give_the_same_loss(loss, smoothing, weighted, logits):
    compute, _ = loss_of(loss, smoothing, weighted)
    by_label = compute(logits, LABELS)
    assert by_label.shape == LABELS.shape
    torch.testing.assert_close(compute(logits, to_shares(LABELS, CLASSES)), by_label)


# The weight of a whole image is a mixture, too.
@pytest.mark.parametrize(
    ("loss", "smoothing", "weighted"), [kind for kind in KINDS if kind[0] == "ce" or not kind[2]]
)
def test_the_loss_of_a_mixture_is_that_of_its_parts(loss, smoothing, weighted, logits):
    """As in equation 2 of mixup: of λ·y + (1 − λ)·y' it is λ·l(y) + (1 − λ)·l(y')."""
    compute, _ = loss_of(loss, smoothing, weighted)
    share = torch.linspace(0, 1, len(LABELS))
    one, other = to_shares(LABELS, CLASSES), to_shares(LABELS.roll(3), CLASSES)
    mixed = compute(logits, share[:, None] * one + (1 - share[:, None]) * other)
    parts = share * compute(logits, LABELS) + (1 - share) * compute(logits, LABELS.roll(3))
    torch.testing.assert_close(mixed, parts)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_pytorch(smoothing, logits):
    compute, weights = loss_of("ce", smoothing, True)
    whole = torch.nn.CrossEntropyLoss(weights, reduction="none", label_smoothing=smoothing)
    assert torch.equal(compute(logits, LABELS), whole(logits, LABELS))
    plain, _ = loss_of("ce", smoothing, False)
    expected = F.cross_entropy(logits, LABELS, label_smoothing=smoothing, reduction="none")
    assert torch.equal(plain(logits, LABELS), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_is_the_mean_over_the_classes(smoothing, logits):
    wide = logits.double()
    target = F.one_hot(LABELS, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    terms = target * F.logsigmoid(wide) + (1 - target) * F.logsigmoid(-wide)
    expected = -terms.sum(1) / CLASSES
    found, _ = loss_of("bce", smoothing, False)
    torch.testing.assert_close(found(logits, LABELS).double(), expected, rtol=1e-5, atol=1e-6)
    weighted, weights = loss_of("bce", smoothing, True)
    torch.testing.assert_close(weighted(logits, LABELS), found(logits, LABELS) * weights[LABELS])


def test_balanced_weights_are_those_of_scikit_learn_and_of_mean_one():
    weights = balance(LABELS, list("abcdefg"))
    expected = compute_class_weight("balanced", classes=np.arange(7), y=LABELS.numpy())
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected))
    assert weights[LABELS].mean().item() == pytest.approx(1)


def test_a_class_without_training_images_is_named():
    with pytest.raises(ValueError, match="balanced, but 'cat' has no training images: leave"):
        balance(torch.tensor([0, 0, 2]), ["ant", "cat", "dog"])


def test_labels_of_shares_are_the_largest():
    assert to_labels(torch.tensor([[0.2, 0.8], [0.7, 0.3]])).tolist() == [1, 0]
    assert to_labels(LABELS) is LABELS


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_step_takes_the_weighted_mean_over_the_batch(loss, accumulate):
    recipe = replace(SMALL, epochs=1, batch_size=2000, crop=0, label_smoothing=0.1, loss=loss)
    recipe = replace(recipe, class_weights="balanced", accumulate=accumulate)
    run = fit(recipe, net(dropout=0.0))
    data = load_dataset("digits")
    images, labels = next(Batches(data.train, 2000).in_order())
    compute = Loss(recipe, balance(labels, data.classes))
    expected = compute(net(dropout=0.0)(images), labels).mean().item()
    row = rows(run.folder)[0]
    assert float(row["train_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(row["test_loss"]) > 1.5  # cross-entropy with either


def test_balanced_classes_train_as_without_weights_up_to_rounding():
    """The digits are nearly balanced, so a wrong scale of the weights would show."""
    recipe = replace(SMALL, crop=0)
    plain, weighted = fit(recipe, net()), fit(replace(recipe, class_weights="balanced"), net())
    for one, other in zip(rows(plain.folder), rows(weighted.folder), strict=True):
        assert float(one["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=0.05)


def test_bce_learns_and_repeats():
    recipe = replace(SMALL, epochs=8, batch_size=50, loss="bce", lr=0.5, crop=0)
    run = fit(recipe, net())
    assert run.summary["final_test_top1"] > 0.85
    check_same(run, fit(recipe, net()))
