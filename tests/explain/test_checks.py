"""Insertion, deletion and randomised weights, against slow versions of their definitions."""

import copy

import pytest
import torch
from gatings import EACH_GATE, OPTIONS, randomise, randomise_norms
from scipy.stats import spearmanr
from torch import nn

import spem
from spem.explain import check_cams, compute_cams
from spem.explain.checks import _correlate_ranks, area, blur, shuffle_weights

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(6))


class Corner(nn.Module):
    """A network whose logit of class 1 is the mean of a corner of the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x):
        found = 8 * self.conv(x)[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(found), found], 1)


def test_a_map_of_what_counts_is_better_than_a_random_one():
    images = torch.zeros(3, 1, 16, 16)
    images[:, :, :4, :4] = 1
    found = check_cams(Corner(), images, method="hirescam", classes=1)
    assert found.deletion.shape == found.random_insertion.shape == (3, 21)
    sure, none = torch.tensor(8.0).sigmoid(), torch.tensor(0.5)
    torch.testing.assert_close(found.deletion[:, 0], sure.expand(3))
    torch.testing.assert_close(found.deletion[:, -1], none.expand(3))
    # All that counts is the first sixteenth of the pixels.
    torch.testing.assert_close(found.deletion[:, 2], none.expand(3))
    torch.testing.assert_close(found.insertion[:, 2:], sure.expand(3, 19))
    assert (area(found.deletion) < area(found.random_deletion) - 0.2).all()
    assert (area(found.insertion) > area(found.random_insertion)).all()


def test_curves_follow_their_definition():
    """Pixel by pixel, with a map without ties."""
    model = randomise_norms(spem.create_model("resnet8", "se", num_classes=4)).eval()
    found = check_cams(model, X, layer="conv1", method="hirescam", steps=4)
    cams = compute_cams(model, X, layer="conv1", method="hirescam")
    for n, map_ in enumerate(cams.maps):
        order = sorted(range(256), key=lambda place: -map_.flatten()[place])
        positive = int((map_ > 0).sum())
        image, soft = X[n].clone(), blur(X[n : n + 1])[0]
        for step in range(5):
            if 64 * step > positive:
                break  # zeros of the map have no order
            for place in order[: 64 * step]:
                image.view(3, -1)[:, place] = 0
                soft.view(3, -1)[:, place] = X[n].reshape(3, -1)[:, place]
            for inputs, curve in ((image, found.deletion), (soft, found.insertion)):
                sure = model(inputs[None]).softmax(1)[0, cams.classes[n]]
                torch.testing.assert_close(curve[n, step], sure.detach(), rtol=1e-4, atol=1e-5)


def test_the_area_and_the_blur_are_what_they_say():
    assert area(torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]])).tolist() == [0.5, 1]
    flat = torch.full((1, 2, 9, 12), 3.0)
    torch.testing.assert_close(blur(flat), flat)
    assert blur(torch.randn(1, 3, 32, 32)).std() < 0.3
    assert blur(torch.randn(1, 3, 1, 5)).shape == (1, 3, 1, 5)


def test_ranks_are_correlated_as_by_scipy():
    first = torch.randn(5, 4, 4).relu()  # with ties
    second = (first + torch.randn(5, 4, 4)).relu()
    expected = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(_correlate_ranks(first, second), torch.tensor(expected).float())
    assert _correlate_ranks(first, torch.zeros(5, 4, 4)).tolist() == [0] * 5


@pytest.mark.parametrize("gate", EACH_GATE)
def test_a_network_is_left_as_it_was_and_its_copy_is_shuffled(gate):
    model = randomise_norms(randomise(spem.create_model("resnet8", gate, **OPTIONS.get(gate, {}))))
    model.layer1.eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    found = check_cams(model, X, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert found.similarity.abs().max() <= 1 + 1e-6
    again = check_cams(model, X, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    other = shuffle_weights(model, X)
    for (_, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
    assert not torch.equal(other.conv1.weight, model.conv1.weight)
    assert other(X).isfinite().all()
    same = check_cams(model, X, shuffled=model, steps=1)
    flat = compute_cams(model, X).maps.flatten(1).std(1) == 0
    torch.testing.assert_close(same.similarity, 1 - flat.float())


@pytest.mark.parametrize("options", [{"steps": 0}, {"seed": -1}, {"steps": 1.5}])
def test_wrong_numbers_are_refused(options):
    with pytest.raises(ValueError, match="must be a whole number"):
        check_cams(spem.create_model("resnet8"), X, **options)
