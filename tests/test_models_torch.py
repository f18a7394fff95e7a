"""The families beside the same networks in PyTorch, whose state dicts have the names of RepDistiller's checkpoints."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import VGG, MobileNetV2, ResNet, ShuffleNetV1, ShuffleNetV2, ViT, WideResNet
from kdjax.networks import from_linen, weights_from

torch = pytest.importorskip("torch")
import torch_values  # noqa: E402

WIDE = (32, 64, 128, 256)
# Of full size, and of the images that they are for, by RepDistiller's names; the last is of no table.
FULL = {
    "resnet20": ResNet(20, classes=100),
    "resnet8x4": ResNet(8, WIDE, classes=100),
    "resnet32x4": ResNet(32, WIDE, classes=100),
    "wrn_16_2": WideResNet(16, 2, classes=100),
    "vgg8": VGG(8, classes=100),
    "vgg13": VGG(13, classes=100),
    "mobile_half": MobileNetV2(0.5, classes=100),
    "ShuffleV1": ShuffleNetV1(classes=100),
    "ShuffleV2": ShuffleNetV2(classes=100),
    "vit_small": ViT(width=48, depth=3, classes=100),
}
CASES = {name: (module, (3, 32, 32, 3)) for name, module in FULL.items()} | families.SMALL
CASES |= {"vgg_64": (VGG(8, classes=5), (2, 64, 32, 3)), "resnet_64": (ResNet(8, classes=5), (2, 64, 64, 3))}


def in_torch(network, inputs):
    """Features channels last, the embedding, the logits."""
    with torch.no_grad():
        dtype = next(network.parameters()).dtype
        features, embedding, logits = network(torch.tensor(inputs, dtype=dtype).permute(0, 3, 1, 2))
    return [(x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy() for x in features], embedding.numpy(), logits.numpy()


def features_of(outputs):
    return [x for name, x in sorted(outputs.features.items()) if name[-1].isdigit()]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_features_are_pytorch_s_with_its_weights(name, tmp_path):
    module, shape = CASES[name]
    network = torch_values.drawn_again(torch_values.twin(module, shape[1]))
    inputs = families.images(*shape)
    logits = in_torch(network, inputs)[2]
    saved = {"epoch": 240, "model": network.state_dict(), "accuracy": torch.tensor(0.7)}
    torch.save(saved, tmp_path / "ckpt_epoch_240.pth")
    # No names are given: the layers have the same order in both.
    weights, report = weights_from(
        tmp_path / "ckpt_epoch_240.pth", module, inputs, part="model", logits=logits, tolerance=1e-4
    )
    assert {entry.what for entry in report if entry.name} == {"copied"}
    assert sum(x.size for x in jax.tree.leaves(weights.params)) == sum(p.numel() for p in network.parameters())
    assert np.ptp(logits) > 0.1

    exactly = in_torch(network.double(), inputs)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), weights)
        _, apply = from_linen(module.clone(dtype=jnp.float64))
        outputs, _ = jax.jit(lambda *given: apply(*given, train=False))(*wide, jnp.asarray(inputs, jnp.float64))
        for ours, theirs in zip(
            [*features_of(outputs), outputs.features["embedding"]], [*exactly[0], exactly[1]], strict=True
        ):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    np.testing.assert_allclose(outputs.logits, exactly[2], rtol=0, atol=1e-6 * np.abs(exactly[2]).max())


@pytest.mark.parametrize("name", ["resnet", "shufflenet_v2"])
def test_in_training_too_batches_are_normalised_as_in_pytorch(name):
    module, shape = families.SMALL[name]
    network = torch_values.drawn_again(torch_values.twin(module)).train()
    inputs = families.images(4, *shape[1:])
    weights, _ = weights_from(network.state_dict(), module, inputs)
    logits = in_torch(network, inputs)[2]
    _, apply = from_linen(module)
    (outputs, moved) = jax.jit(lambda *given: apply(*given, train=True))(*weights, inputs)
    np.testing.assert_allclose(outputs.logits, logits, rtol=0, atol=1e-3 * np.abs(logits).max())
    theirs, _ = weights_from(network.state_dict(), module, inputs)
    for (path, ours), mean in zip(
        jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(theirs.model_state), strict=True
    ):
        if path[-1].key == "mean":  # PyTorch keeps the variance with another divisor
            np.testing.assert_allclose(ours, mean, rtol=1e-3, atol=1e-3)
