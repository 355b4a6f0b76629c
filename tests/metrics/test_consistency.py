import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genstab import InputError, ShiftConsistency
from genstab.evaluation.classifiers import classifier_stability, draw_positions, view
from genstab.metrics.consistency import classes, same_class


class WhereIsTheDot(nn.Module):
    """The class is the quarter, column by column, of the image in which the brightest pixel lies."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return nn.functional.adaptive_max_pool2d(x, (1, 4)).flatten(1)


def dots(columns, size=16):
    images = torch.zeros(len(columns), 1, size, size)
    for image, column in zip(images, columns, strict=True):
        image[0, size // 2, column] = 1
    return images


def test_classes_and_same_by_hand():
    logits = torch.tensor([[1.0, 2, 0], [torch.nan, 1, 0], [5, torch.inf, 0]])
    assert classes(logits).tolist() == [1, -1, 1]
    assert classes(logits.bfloat16()).tolist() == [1, -1, 1]
    assert same_class(logits, logits).tolist() == [True, False, True]
    assert same_class(logits, torch.tensor([1, -1, 2])).tolist() == [True, False, False]


def test_the_metric_is_the_share_of_images_with_the_same_class():
    metric = ShiftConsistency()
    metric.update(torch.eye(3), torch.tensor([0, 1, 0]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_places_are_uniform_different_and_each_image_s_own():
    places = draw_positions(3, max_shift=2, pairs=3600)
    assert places.shape == (3600, 2, 2)
    assert (places[:, 0] != places[:, 1]).any(-1).all()
    for side in (0, 1):
        found = torch.from_numpy(places[:, side, 0] * 3 + places[:, side, 1]).bincount(minlength=9)
        assert found.tolist() == pytest.approx([400] * 9, abs=100)  # five standard deviations
    # also the pairs are: 72 of them
    codes = torch.from_numpy(places[:, 0] @ [27, 9] + places[:, 1] @ [3, 1]).bincount(minlength=81)
    assert ((codes > 0).sum(), codes.max() < 100) == (72, True)
    assert (draw_positions(3, 2, 5) == places[:5]).all()
    assert not (draw_positions(4, 2, 3600) == places).all()
    assert not (draw_positions(3, 2, 3600, seed=1) == places).all()


def test_views_by_hand():
    image = torch.arange(12.0).view(1, 3, 4)
    assert view(image, (1, 0), 1, "crop").tolist() == [[[4, 5, 6], [8, 9, 10]]]
    assert torch.equal(view(image, (0, 0), 1, "circular"), image)
    assert torch.equal(view(image, (1, 1), 2, "circular"), image)
    assert view(image, (2, 1), 2, "circular")[0, :, 0].tolist() == [8, 0, 4]


@pytest.mark.parametrize("protocol", ["crop", "circular"])
def test_stability_by_counting(protocol):
    """A dot at column c of 16, moved by j − 2 columns or seen in a window of 12 from column i on: its quarter."""
    columns, pairs, seed = [0, 5, 7, 8, 15], 6, 4
    model = WhereIsTheDot()
    data = TensorDataset(dots(columns), torch.tensor([0, 1, 1, 1, 3]))
    if protocol == "crop":  # a dot outside leaves nothing but zeros, of which the first is the largest
        quarter = [[(c - i) // 3 if 0 <= c - i < 12 else 0 for i in range(5)] for c in columns]
    else:
        quarter = [[(c + i - 2) % 16 // 4 for i in range(5)] for c in columns]
    result = classifier_stability(model, data, protocol, 4, pairs, seed)[protocol]
    shares = []
    for index in range(5):
        moved = draw_positions(index, 4, pairs, seed)[..., 1]
        shares.append(sum(quarter[index][a] == quarter[index][b] for a, b in moved) / pairs)
    assert result["consistency_per_image"] == pytest.approx(shares)
    assert result["consistency"] == pytest.approx(sum(shares) / 5)
    correct = [row[2] == label for row, label in zip(quarter, [0, 1, 1, 1, 3], strict=True)]
    assert result["correct"] == correct
    assert result["accuracy"] == pytest.approx(sum(correct) / 5)
    assert {size[2:] for size in model.sizes} == {(12, 12) if protocol == "crop" else (16, 16)}


def test_neither_the_batch_size_nor_the_other_images_change_it():
    images, labels = dots(range(16)), torch.arange(16) // 4
    model = WhereIsTheDot()
    expected = classifier_stability(model, TensorDataset(images, labels), forward_batch=1000)
    assert expected["crop"]["consistency"] != expected["circular"]["consistency"]
    for batch_size, forward_batch in ((3, 5), (16, 1)):
        model.sizes.clear()
        loader = DataLoader(TensorDataset(images, labels), batch_size)
        assert classifier_stability(model, loader, forward_batch=forward_batch) == expected
        assert max(size[0] for size in model.sizes) == forward_batch
    first = classifier_stability(model, [{"source": images[:4], "label": labels[:4]}])["crop"]["consistency_per_image"]
    assert first == expected["crop"]["consistency_per_image"][:4]
    other = classifier_stability(model, TensorDataset(images, labels), "crop", seed=1)
    assert other["crop"]["consistency_per_image"] != expected["crop"]["consistency_per_image"]


def test_without_labels_and_in_training_mode():
    model = nn.Sequential(nn.Dropout(0.9), WhereIsTheDot())
    for data in ([dots([3, 4])], [{"source": dots([3, 4]), "name": ["a", "b"]}]):
        result = classifier_stability(model, data, pairs=2)
        assert set(result["crop"]) == set(result["circular"]) == {"consistency", "consistency_per_image", "predicted"}
    assert model.training
    nan = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    nan(dots([3]))
    nn.init.constant_(nan[1].bias, torch.nan)
    result = classifier_stability(nan, TensorDataset(dots([3, 4]), torch.tensor([0, 1])), "circular")["circular"]
    assert (result["consistency"], result["accuracy"]) == (0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: classifier_stability(nn.Identity(), [x]), "neither logits"),
        (lambda m, x: classifier_stability(nn.Sequential(m, nn.Linear(4, 1)), [x]), "K of at least 2"),
        (lambda m, x: classifier_stability(m, [x], "roll"), "protocol='roll' is not one of crop, circular"),
        (lambda m, x: classifier_stability(m, [x], max_shift=16), "max_shift=16 needs larger images than 16×16"),
        (lambda m, x: classifier_stability(m, [x], max_shift=0), "max_shift=0"),
        (lambda m, x: classifier_stability(m, [x], pairs=0), "pairs=0"),
        (lambda m, x: classifier_stability(m, []), "there are no images"),
        (lambda m, x: classifier_stability(m, [(x, torch.zeros(8))]), "torch.float32, are not 8 integers"),
        (lambda m, x: classifier_stability(m, [(x, torch.zeros(8, 2).long())]), "are not 8 integers"),
        (lambda m, x: same_class(torch.zeros(2, 1), torch.zeros(2, 1)), "K of at least 2"),
        (lambda m, x: same_class(torch.zeros(2), torch.zeros(2)), "neither logits"),
        (lambda m, x: same_class(torch.zeros(2, 3), torch.zeros(3, 3)), "2 and 3 outputs cannot be compared"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(WhereIsTheDot(), dots(range(8)))
