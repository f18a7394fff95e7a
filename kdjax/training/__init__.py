"""The train step, the loop, and what is made of steps: on many devices, in phases, online, on views, in sweeps."""

from kdjax.training import phases as phases
from kdjax.training import sweeps as sweeps
from kdjax.training._asked import asking as asking
from kdjax.training._evaluation import make_eval_step as make_eval_step
from kdjax.training._evaluation import make_evaluation as make_evaluation
from kdjax.training._step import make_train_step as make_train_step
from kdjax.training.accumulation import accumulate as accumulate
from kdjax.training.accumulation import distillation_oriented as distillation_oriented
from kdjax.training.compiler import compiler_options as compiler_options
from kdjax.training.compiler import jit_init as jit_init
from kdjax.training.devices import data_mesh as data_mesh
from kdjax.training.devices import jit_step as jit_step
from kdjax.training.devices import pmap_step as pmap_step
from kdjax.training.devices import process_rows as process_rows
from kdjax.training.devices import replicate as replicate
from kdjax.training.devices import shard_batch as shard_batch
from kdjax.training.devices import shard_map_step as shard_map_step
from kdjax.training.devices import split_batch as split_batch
from kdjax.training.divergence import DivergedError as DivergedError
from kdjax.training.divergence import DivergenceWatch as DivergenceWatch
from kdjax.training.divergence import skip_non_finite as skip_non_finite
from kdjax.training.loop import make_epoch as make_epoch
from kdjax.training.memory import keep_memory as keep_memory
from kdjax.training.online import follow as follow
from kdjax.training.online import init_mean_teacher as init_mean_teacher
from kdjax.training.online import make_mean_teacher_step as make_mean_teacher_step
from kdjax.training.online import make_mutual_step as make_mutual_step
from kdjax.training.optimizers import clip_while as clip_while
from kdjax.training.optimizers import freeze as freeze
from kdjax.training.optimizers import freeze_model_state as freeze_model_state
from kdjax.training.optimizers import train_only as train_only
from kdjax.training.sharding import shard_by_rules as shard_by_rules
from kdjax.training.sharding import shard_largest_axis as shard_largest_axis
from kdjax.training.state import init_state as init_state
from kdjax.training.state import weights_of as weights_of
from kdjax.training.views import augmented as augmented

__all__ = [
    "DivergedError",
    "DivergenceWatch",
    "accumulate",
    "asking",
    "augmented",
    "clip_while",
    "compiler_options",
    "data_mesh",
    "distillation_oriented",
    "follow",
    "freeze",
    "freeze_model_state",
    "init_mean_teacher",
    "init_state",
    "jit_init",
    "jit_step",
    "keep_memory",
    "make_epoch",
    "make_eval_step",
    "make_evaluation",
    "make_mean_teacher_step",
    "make_mutual_step",
    "make_train_step",
    "phases",
    "pmap_step",
    "process_rows",
    "replicate",
    "shard_batch",
    "shard_by_rules",
    "shard_largest_axis",
    "shard_map_step",
    "skip_non_finite",
    "split_batch",
    "sweeps",
    "train_only",
    "weights_of",
]
