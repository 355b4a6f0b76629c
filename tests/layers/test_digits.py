import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from genstab.evaluation.classifiers import classifier_stability
from genstab.metrics.feature_distance import feature_maps
from genstab.metrics.shift_ops import grid_shifts
from tests.helpers.digits import digits, middle, train

TRAINED = 1297


@pytest.mark.slow
def test_a_classifier_with_blurred_poolings_moves_with_the_image_and_agrees_with_itself():
    images, labels = digits()
    shifts = grid_shifts(4)
    distances, results = {}, {}
    for filter in ("none", "tri3"):
        model = train(middle(images[:TRAINED]), labels[:TRAINED], filter)
        pools = [name for name, layer in model.named_modules() if isinstance(layer, nn.MaxPool2d)]
        distances[filter] = feature_maps(model, middle(images[TRAINED : TRAINED + 8]), shifts, ["?", *pools])
        results[filter] = {
            protocol: classifier_stability(
                model, TensorDataset(cut(images[TRAINED:]), labels[TRAINED:]), protocol, pairs=3, forward_batch=128
            )[protocol]
            for protocol, cut in (("crop", lambda x: x), ("circular", middle))
        }
    plain, blurred = distances["none"], distances["tri3"]
    assert pools == ["6", "13", "20"]
    for name in pools:
        assert blurred[name].mean() < 0.8 * plain[name].mean(), name
    # nothing deviates before the first pooling, and behind the n-th shifts by multiples of 2^n are exact
    for found in (plain, blurred):
        assert max(found[str(i)].max() for i in range(6)) < 1e-5
        for name, stride in zip(pools, (2, 4, 8), strict=True):
            exact = torch.tensor([dy % stride == dx % stride == 0 for dy, dx in shifts])
            assert (found[name].mean(1) < 1e-5).tolist() == exact.tolist(), name

    for protocol in ("crop", "circular"):
        assert results["tri3"][protocol]["consistency"] > results["none"][protocol]["consistency"] + 0.02
    for found in results.values():
        # the digit lies in the middle window: both protocols have the same unmoved image
        assert found["crop"]["correct"] == found["circular"]["correct"]
        assert found["crop"]["accuracy"] > 0.95
