"""Any network as an `Apply`, and new ones made from it."""

from kdjax.networks.adapters import from_equinox as from_equinox
from kdjax.networks.adapters import from_linen as from_linen
from kdjax.networks.adapters import from_nnx as from_nnx
from kdjax.networks.ensembles import by_confidence as by_confidence
from kdjax.networks.ensembles import ensemble as ensemble
from kdjax.networks.ensembles import ensemble_weights as ensemble_weights
from kdjax.networks.features import average_of as average_of
from kdjax.networks.features import fused as fused
from kdjax.networks.features import layer_at as layer_at
from kdjax.networks.features import layer_names as layer_names
from kdjax.networks.features import with_features as with_features
from kdjax.networks.frameworks import from_haiku as from_haiku
from kdjax.networks.frameworks import from_keras as from_keras
from kdjax.networks.frameworks import into_keras as into_keras
from kdjax.networks.pca import Projection as Projection
from kdjax.networks.pca import fit_pca as fit_pca
from kdjax.networks.pca import project as project
from kdjax.networks.pca import projection_of as projection_of
from kdjax.networks.precision import computed_in as computed_in
from kdjax.networks.probes import linear_probe as linear_probe
from kdjax.networks.transfer import Transfer as Transfer
from kdjax.networks.transfer import copy_matching as copy_matching
from kdjax.networks.transfer import transfer_lines as transfer_lines
from kdjax.networks.weights_from import weights_from as weights_from

__all__ = [
    "Projection",
    "Transfer",
    "average_of",
    "by_confidence",
    "computed_in",
    "copy_matching",
    "ensemble",
    "ensemble_weights",
    "fit_pca",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "fused",
    "into_keras",
    "layer_at",
    "layer_names",
    "linear_probe",
    "project",
    "projection_of",
    "transfer_lines",
    "weights_from",
    "with_features",
]
