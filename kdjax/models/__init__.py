"""Networks in Flax Linen that return `Outputs` with named features. The only folder that imports Flax.

``kdjax.networks.from_linen`` turns each into `Weights` and an `Apply`.
"""

from kdjax.models._cnn import CNN as CNN
from kdjax.models._convolution import convolve as convolve
from kdjax.models._layers import Dropout as Dropout
from kdjax.models._layers import max_pool as max_pool
from kdjax.models._mobilenet_v2 import MobileNetV2 as MobileNetV2
from kdjax.models._resnet import ResNet as ResNet
from kdjax.models._shufflenet_v1 import ShuffleNetV1 as ShuffleNetV1
from kdjax.models._shufflenet_v2 import ShuffleNetV2 as ShuffleNetV2
from kdjax.models._vgg import VGG as VGG
from kdjax.models._vit import ViT as ViT
from kdjax.models._wide_resnet import WideResNet as WideResNet

__all__ = [
    "CNN",
    "VGG",
    "Dropout",
    "MobileNetV2",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "ViT",
    "WideResNet",
    "convolve",
    "max_pool",
]
