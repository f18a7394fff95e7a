"""One small network of each family of kdjax.models, weights for them that are away from their start, and images."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models import VGG, MobileNetV2, ResNet, ShuffleNetV1, ShuffleNetV2, ViT, WideResNet
from kdjax.networks import from_linen

KEY = jax.random.key(0)
# With images of unlike sides where the family takes them.
SMALL = {
    "resnet": (ResNet(8, (4, 8, 8, 16), classes=5), (2, 9, 12, 3)),
    "wide_resnet": (WideResNet(10, 1, classes=5), (2, 9, 12, 3)),
    "vgg": (VGG(8, classes=5), (2, 8, 9, 3)),
    "mobilenet_v2": (MobileNetV2(0.25, classes=5), (2, 16, 20, 3)),
    "shufflenet_v1": (ShuffleNetV1(classes=5), (2, 8, 12, 3)),
    "shufflenet_v2": (ShuffleNetV2(classes=5), (2, 8, 12, 3)),
    "vit": (ViT(width=12, depth=2, classes=5), (2, 8, 8, 3)),
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(module, shape):
    """Weights all away from their start, so that no bias, scale or statistic can be forgotten; nothing is compiled."""
    shapes = jax.eval_shape(from_linen(module)[0], KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    drawn = []
    for number, (path, leaf) in enumerate(leaves):
        x, name = images(*leaf.shape, seed=(1, number)), path[-1].key
        if name in ("scale", "var"):
            x = 1 + 0.3 * np.abs(x)
        elif name == "kernel":
            x = x * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        else:
            x = 0.3 * x
        drawn.append(jnp.asarray(x))
    return jax.tree.unflatten(structure, drawn)


def shorten(monkeypatch):
    """Of each kind of block one or two, and few channels: compiling the gradients of all takes a quarter of a minute."""
    monkeypatch.setattr("kdjax.models._vgg.WIDTHS", (4, 8, 8, 16, 16))
    monkeypatch.setattr("kdjax.models._shufflenet_v1.STAGES", ((48, 2), (96, 2)))
    monkeypatch.setattr("kdjax.models._shufflenet_v2.STAGES", ((12, 1), (24, 2)))
    monkeypatch.setattr("kdjax.models._mobilenet_v2.GROUPS", ((16, 1, 1), (24, 2, 1), (32, 1, 2)))
