import pytest
import torch
import torch.nn.functional as F

from spem.data.batches import Batches, Split, normalise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def split():
    images = torch.randint(1, 256, (400, 3, 32, 32), dtype=torch.uint8)
    return Split(images, torch.arange(400))


def bytes_of(pixels):
    """Undo the default normalisation."""
    return pixels.mul(0.5).add(0.5).mul(255).round().to(torch.uint8)


def test_normalise_matches_the_formula(split):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (split.images.double() / 255 - mean) / std
    torch.testing.assert_close(normalise(split.images, MEAN, STD), expected.float())
    assert normalise(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist() == [[[-1, 1]]]
    assert split.images.dtype == torch.uint8


def test_in_order_keeps_order_and_pixels(split):
    batches = Batches(split, 128, mean=MEAN, std=STD, crop=4, flip=True)
    images, labels = map(torch.cat, zip(*batches.in_order(), strict=True))
    assert torch.equal(images, normalise(split.images, MEAN, STD))
    assert torch.equal(labels, split.labels)
    assert [len(labels) for _, labels in batches.in_order()] == [128, 128, 128, 16]
    assert len(batches) == 4


def test_shuffled_follows_the_order_from_any_step(split):
    order = torch.randperm(400)
    batches = Batches(split, 128)
    for start in range(5):
        found = list(batches.shuffled(order, start))
        assert len(found) == 4 - start
        for (images, labels), rows in zip(found, order.split(128)[start:], strict=True):
            assert torch.equal(labels, rows)
            assert torch.equal(bytes_of(images), split.images[rows])


def test_crops_are_zero_padded_windows_at_every_offset(split):
    (images, _), *_ = Batches(split, 400, crop=4).shuffled(torch.arange(400))
    windows = F.pad(split.images, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    found = torch.zeros(9, 9)
    for image, window in zip(bytes_of(images), windows, strict=True):
        matches = (window == image[:, None, None]).all(dim=0).flatten(2).all(dim=2)
        assert matches.sum() == 1
        found += matches
    # 400 draws miss one of the 9 rows (or columns) once in 3e19 times.
    assert (found.sum(0) > 0).all()
    assert (found.sum(1) > 0).all()
    assert len(found.nonzero()) > 60


def test_padding_is_black_before_normalisation():
    white = Split(torch.full((64, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(64).long())
    (images, _), *_ = Batches(white, 64, mean=[0.25], std=[0.5], crop=2).shuffled(torch.arange(64))
    assert set(images.unique().tolist()) == {-0.5, 1.5}


def test_flips_mirror_about_half_of_the_images(split):
    (images, _), *_ = Batches(split, 400, flip=True).shuffled(torch.arange(400))
    pixels = bytes_of(images)
    same = (pixels == split.images).flatten(1).all(dim=1)
    mirrored = (pixels == split.images.flip(-1)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 130 < mirrored.sum() < 270  # 7 standard deviations


def test_augmentation_depends_on_the_global_generator_alone(split):
    batches = Batches(split, 64, crop=4, flip=True)

    def draw(seed):
        torch.manual_seed(seed)
        return next(batches.shuffled(torch.arange(400)))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_batch_draws_when_it_is_asked_for(split):
    batches = Batches(split, 128, crop=4, flip=True)
    steps = batches.shuffled(torch.arange(400))
    next(steps)
    torch.manual_seed(3)
    from_the_second, _ = next(steps)
    torch.manual_seed(3)
    resumed, _ = next(batches.shuffled(torch.arange(400), start=1))
    assert torch.equal(from_the_second, resumed)


def test_the_split_is_never_altered(split):
    before = split.images.clone()
    list(Batches(split, 128, crop=4, flip=True).shuffled(torch.arange(400)))
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_every_global_batch(split, world_size):
    order = torch.randperm(400)
    shares = [
        list(
            Batches(split, 133, crop=4, flip=True, rank=rank, world_size=world_size).shuffled(order)
        )
        for rank in range(world_size)
    ]
    for step, rows in zip(zip(*shares, strict=True), order.split(133), strict=True):
        sizes = [len(labels) for _, labels in step]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(torch.cat([labels for _, labels in step]), rows)
        assert all(images.shape == (len(labels), 3, 32, 32) for images, labels in step)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(split, channels_last):
    batches = Batches(split, 16, crop=4, flip=True, channels_last=channels_last)
    expected = torch.channels_last if channels_last else torch.contiguous_format
    for images, _ in (next(batches.in_order()), next(batches.shuffled(torch.arange(16)))):
        assert images.is_contiguous(memory_format=expected)
        assert images.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": [0.5]}, "mean has 1 values, the images 3 channels"),
        ({"std": [0.5] * 4}, "std has 4 values, the images 3 channels"),
        ({"std": [0.5, 0.0, 0.5]}, r"std is \[0.5, 0.0, 0.5\]; every value must be positive"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"crop": -1}, "crop is -1"),
    ],
)
def test_wrong_options_are_refused(split, wrong, message):
    with pytest.raises(ValueError, match=message):
        Batches(split, **{"batch_size": 8, **wrong})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu(split):
    order = torch.randperm(400)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        batches = Batches(split, 128, mean=MEAN, std=STD, crop=4, flip=True, device=device)
        found.append(list(batches.shuffled(order)))
    for (images, labels), (gpu_images, gpu_labels) in zip(*found, strict=True):
        assert gpu_images.is_cuda
        assert torch.equal(gpu_labels.cpu(), labels)
        torch.testing.assert_close(gpu_images.cpu(), images)


@pytest.mark.parametrize(("side", "count"), [(8, 1000), (64, 1000), (96, 455), (224, 83), (999, 4)])
def test_evaluation_takes_fewer_of_larger_images(side, count):
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    split = Split(image.expand(1001, -1, -1, -1), torch.zeros(1001, dtype=torch.int64))
    assert len(Batches(split)) == -(-1001 // count)
