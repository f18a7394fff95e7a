"""Losses: arrays in, one number per example out. Each stands alone and may be lifted into anybody's own code."""

from kdjax.losses._features import attention_transfer as attention_transfer
from kdjax.losses._features import hint as hint
from kdjax.losses._logits import logit_mse as logit_mse
from kdjax.losses._logits import soft_target_kl as soft_target_kl
from kdjax.losses._relations import pkt as pkt
from kdjax.losses._relations import rkd_angle as rkd_angle
from kdjax.losses._relations import rkd_distance as rkd_distance

__all__ = [
    "attention_transfer",
    "hint",
    "logit_mse",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "soft_target_kl",
]
