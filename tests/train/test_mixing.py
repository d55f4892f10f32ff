"""Mixup and CutMix against the published formulas, and runs that mix."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from runs import SMALL, check_same, net, rows
from torch.distributions import Beta

from spem.train.fitting import Interrupted, fit
from spem.train.identity import record_key
from spem.train.mixing import Mixing
from spem.train.recipe import Recipe

COUNT, CLASSES, SIDE = 4000, 7, 20


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def mix(**keys):
    """Mix images whose pixels all are their own number, so that shares can be read off."""
    numbers = torch.arange(COUNT, dtype=torch.float64)
    images = numbers.view(-1, 1, 1, 1).expand(-1, 2, SIDE, SIDE).contiguous()
    labels = torch.arange(COUNT) % CLASSES
    mixing = Mixing(Recipe(**keys), CLASSES)
    draw = mixing._draw
    mixing._draw = lambda *sizes: tuple(each.double() for each in draw(*sizes))
    mixed, targets = mixing(images, labels)
    # x = λ·i + (1 − λ)·(i − 1) without the first image, whose partner is the last.
    own = (mixed - (numbers - 1).view(-1, 1, 1, 1))[1:, 0]
    shares = targets[torch.arange(COUNT), labels][1:]
    others = targets[torch.arange(COUNT), labels.roll(1)][1:]
    return own, shares, others


def check_beta(shares, alpha):
    """The empirical distribution is near that of Beta(α, α): Kolmogorov's D below 1.95 / √n."""
    drawn = shares.sort().values
    many = Beta(torch.tensor(alpha).double(), alpha).sample((400_000,)).sort().values
    places = torch.searchsorted(many, drawn) / len(many)
    assert (places - torch.linspace(0, 1, len(drawn))).abs().max() < 1.95 / len(drawn) ** 0.5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_is_the_convex_combination_of_images_and_labels(alpha):
    own, shares, others = mix(mixup=alpha)
    assert torch.equal(own.amin((1, 2)), own.amax((1, 2)))
    torch.testing.assert_close(own[:, 0, 0], shares, rtol=0, atol=1e-6)
    torch.testing.assert_close(shares + others, torch.ones_like(shares))
    check_beta(shares, alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_pastes_a_rectangle_and_mixes_labels_by_its_area(alpha):
    own, shares, others = mix(cutmix=alpha)
    pasted = own < 0.5
    assert ((own - own.round()).abs() < 1e-9).all()
    heights, widths = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert torch.equal(pasted.sum((1, 2)), heights * widths)
    torch.testing.assert_close(1 - heights * widths / SIDE**2, shares.float())
    torch.testing.assert_close(shares + others, torch.ones_like(shares))
    # A rectangle of the sides √(1 − λ), in the middle of the image, is cut away nowhere.
    sides = heights[(heights == widths) & ~pasted[:, [0, -1]].any((1, 2))]
    assert sides.min() == 0
    assert sides.max() >= SIDE - 3
    assert (sides % 2 == 0).float().mean() > 0.95
    centres = pasted.double().mean(0)
    assert centres[8:12, 8:12].mean() > centres[:2, :2].mean() > 0


def test_with_both_each_image_gets_either():
    own, _, _ = mix(mixup=4.0, cutmix=1.0)
    cut = ((own < 1e-9) | (own > 1 - 1e-9)).flatten(1).all(1)
    assert cut.double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_without_a_method_images_and_labels_are_those_given():
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    before = torch.get_rng_state()
    found = Mixing(Recipe(), 3)(images, labels)
    assert found[0] is images
    assert found[1] is labels
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_keep_their_memory_format_and_the_given_ones_stay(memory_format):
    images = torch.rand(5, 3, 8, 8).contiguous(memory_format=memory_format)
    before = images.clone()
    mixed, targets = Mixing(Recipe(mixup=1.0, cutmix=1.0), 4)(images, torch.arange(5) % 4)
    assert mixed.is_contiguous(memory_format=memory_format)
    assert mixed.dtype == targets.dtype == torch.float32
    assert torch.equal(images, before)


MIXED = replace(SMALL, mixup=0.2, cutmix=1.0, trivial_augment=True, random_erasing=0.5)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_run_with_everything_resumes_bit_for_bit(loss, tmp_path):
    recipe = replace(MIXED, loss=loss, label_smoothing=0.1, class_weights="balanced", accumulate=2)
    whole = fit(recipe, net())
    stopped = net()
    calls = iter(range(100))
    stopped.before = lambda: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == 6 else None
    with pytest.raises(Interrupted):
        fit(recipe, stopped, out=tmp_path / "run")
    check_same(whole, fit(recipe, net(), out=tmp_path / "run", resume=True))


def test_the_reported_loss_and_accuracy_are_of_mixed_targets():
    """A network that knows all digits is right about the larger share of each mixture."""
    trained = fit(replace(SMALL, epochs=8, crop=0, batch_size=100), net(dropout=0.0))
    recipe = replace(SMALL, epochs=1, crop=0, lr=1e-9, mixup=0.2, weight_decay=0.0)
    row = rows(fit(recipe, trained.model).folder)[0]
    assert float(row["train_top1"]) > 0.8
    assert float(row["train_loss"]) > float(row["validation_loss"])


@pytest.mark.parametrize(
    "keys",
    [{"trivial_augment": True}, {"random_erasing": 0.5}, {"mixup": 0.2}, {"cutmix": 1.0}],
    ids=str,
)
def test_each_key_changes_what_is_trained_on_and_the_key_of_the_run(keys):
    plain = replace(SMALL, epochs=1)
    recipe = replace(plain, **keys)
    assert record_key(recipe) != record_key(plain)
    losses = [rows(fit(each, net()).folder)[0]["train_loss"] for each in (plain, recipe)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("mixup", 0.001, "0, or a number from 0.01 to 100"),
        ("cutmix", True, "0, or a number from 0.01 to 100"),
        ("random_erasing", 1.5, "a number from 0 to 1"),
        ("trivial_augment", 1, "true or false"),
    ],
)
def test_values_that_are_not_allowed_are_named(key, value, allowed):
    with pytest.raises(ValueError, match=f"^{key} must be {allowed}, got {value}"):
        Recipe(**{key: value})
