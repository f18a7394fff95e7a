"""Networks in Flax Linen that return `Outputs` with named features. The only folder that imports Flax.

``kdjax.networks.from_linen`` turns each into `Weights` and an `Apply`.
"""

from kdjax.models._cnn import CNN as CNN
from kdjax.models._convolution import convolve as convolve
from kdjax.models._layers import Dropout as Dropout
from kdjax.models._layers import max_pool as max_pool
from kdjax.models._wide_resnet import WideResNet as WideResNet

__all__ = ["CNN", "Dropout", "WideResNet", "convolve", "max_pool"]
