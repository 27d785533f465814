"""Augmentation and normalisation of whole batches, and batches made with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from ceprop_cuda.data import Batches, Dataset, Normalisation, random_crop

NORMALISE = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.9))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, size: tuple[int, int] = (9, 7)) -> Tensor:
    return torch.randint(256, (count, 3, *size), dtype=torch.uint8, generator=generator(7))


def crops(image: Tensor, padding: int, mirror: bool) -> list[Tensor]:
    """Every result that one image ``(C, H, W)`` can have, by torchvision: mirrored or not, padded, cropped."""
    size = list(image.shape[1:])
    sources = [image, transforms.horizontal_flip(image)] if mirror else [image]
    padded = [transforms.pad(source, [padding], padding_mode="edge") for source in sources]
    places = range(2 * padding + 1)
    return [transforms.crop(big, top, left, *size) for big in padded for top in places for left in places]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_result_is_one_of_torchvisions(padding: int, mirror: bool) -> None:
    before = images(40)
    after = random_crop(before, generator(), padding, mirror)
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    for image, result in zip(before, after, strict=True):
        assert any(torch.equal(result, crop) for crop in crops(image, padding, mirror))


def test_results_are_those_of_a_loop_over_the_samples() -> None:
    before, padding = images(30), 4
    after = random_crop(before, generator(3), padding, mirror=True)
    draws = generator(3)
    moves = torch.randint(-padding, padding + 1, (2, 30, 1), generator=draws).squeeze(2)
    mirrored = torch.rand(30, 1, generator=draws).squeeze(1) < 0.5
    for image, result, down, right, flip in zip(before, after, *moves.tolist(), mirrored.tolist(), strict=True):
        padded = transforms.pad(transforms.horizontal_flip(image) if flip else image, [padding], padding_mode="edge")
        assert torch.equal(result, transforms.crop(padded, padding + down, padding + right, 9, 7))


def test_all_moves_are_equally_likely_and_half_are_mirrored() -> None:
    count, padding = 32_400, 4
    image = torch.arange(9 * 9).reshape(1, 1, 9, 9)  # no two pixels are alike
    after = random_crop(image.expand(count, 1, 9, 9), generator(), padding, mirror=True)
    # The middle pixel tells from where it came, its neighbours whether the image was mirrored.
    place = after[:, 0, 4, 4]
    is_mirrored = after[:, 0, 4, 5] < after[:, 0, 4, 4]
    is_mirrored |= after[:, 0, 4, 3] > after[:, 0, 4, 4]
    times = (place + 81 * is_mirrored).bincount(minlength=162).double()
    expected = count / 162
    chi_squared = ((times - expected) ** 2 / expected).sum()
    assert chi_squared < 230  # of 161 degrees of freedom: more in 3 of 10000 cases
    unmirrored = random_crop(image.expand(200, 1, 9, 9), generator(), padding)
    assert (unmirrored[:, 0, 4].diff() >= 0).all()


def test_the_generator_decides_alone() -> None:
    before = images(20)
    results = []
    for seed, global_seed in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        results.append(random_crop(before, generator(seed), mirror=True))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(before, images(20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_is_torchvisions(dtype: torch.dtype) -> None:
    before = images(5)
    ours = NORMALISE._replace(dtype=dtype)(before)
    assert ours.dtype == dtype
    theirs = v2.Compose([v2.ToDtype(dtype, scale=True), v2.Normalize(NORMALISE.mean, NORMALISE.std)])
    torch.testing.assert_close(ours, theirs(before), rtol=0, atol=8 * torch.finfo(dtype).eps)  # values up to 3
    assert torch.equal(before, images(5))


# ---------------------------------------------------------------------------------------------------------------
# Batches


def colours(count: int = 100) -> Dataset:
    x, y = images(count), torch.arange(count) % 10
    return Dataset(x, y, x[:30], y[:30], 10, NORMALISE, mirrors=True)


def test_test_batches_are_normalised_and_not_augmented() -> None:
    data = colours()
    batches = data.test_batches(8)
    assert [len(y) for _, y in batches] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([x for x, _ in batches]), NORMALISE(data.test_x))
    assert torch.equal(torch.cat([y for _, y in batches]), data.test_y)


def test_training_batches_are_augmented_before_they_are_normalised() -> None:
    data = colours()
    plain, augmented = data.train_batches(4, seed=3), data.train_batches(4, seed=3, augmented=True)
    (x, y), (moved, same_y) = next(iter(plain)), next(iter(augmented))
    assert torch.equal(y, same_y)  # the order is that without augmentation
    assert not torch.equal(x, moved)
    for label, image in zip(y, moved, strict=True):
        candidates = [crop for i in range(int(label), 100, 10) for crop in crops(data.train_x[i], 4, mirror=True)]
        assert (NORMALISE(torch.stack(candidates)) == image).all((1, 2, 3)).any()


def test_a_data_set_that_does_not_allow_it_is_not_mirrored() -> None:
    rising = torch.arange(7, dtype=torch.uint8).expand(200, 3, 9, 7)  # from left to right
    data = Dataset(rising, torch.zeros(200).long(), rising, torch.zeros(200).long(), 10, NORMALISE)
    for may_mirror in (False, True):
        x = torch.cat([x for x, _ in data._replace(mirrors=may_mirror).train_batches(16, augmented=True)])
        falls = (x.diff(dim=3) < 0).any((1, 2, 3)).float().mean()
        assert (falls > 0.4) == may_mirror
        assert (falls == 0) == (not may_mirror)


def test_each_epoch_is_augmented_anew_and_again_the_same_from_the_seed() -> None:
    def epochs(seed: int) -> list[Tensor]:
        x = images(1).expand(90, 3, 9, 7)  # one image: only the augmentation can differ
        batches = Batches(x, torch.arange(90), 5, shuffle=True, seed=seed, augment=random_crop, normalise=NORMALISE)
        return [torch.cat([x for x, _ in batches]) for _ in range(2)]

    first, second = epochs(1)
    assert not torch.equal(first, second)
    assert not torch.equal(first[:80], first[10:])  # nor are the groups of an epoch alike
    assert all(torch.equal(a, b) for a, b in zip((first, second), epochs(1), strict=True))
    assert not torch.equal(first, epochs(2)[0])


def test_state_taken_within_an_augmented_epoch_is_that_of_the_next() -> None:
    batches = colours().train_batches(4, seed=1, augmented=True)
    running = iter(batches)
    next(running)
    state = batches.state_dict()
    list(running)
    expected = list(batches)
    other = colours().train_batches(4, seed=99, augmented=True)
    other.load_state_dict(state)
    for (x, y), (other_x, other_y) in zip(expected, other, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
