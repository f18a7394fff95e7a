"""Losses: arrays in, one number per example out. Each stands alone and may be lifted into anybody's own code."""

from kdjax.losses._bank import Bank as Bank
from kdjax.losses._bank import draw_negatives as draw_negatives
from kdjax.losses._bank import init_bank as init_bank
from kdjax.losses._contrastive import crd as crd
from kdjax.losses._contrastive import info_nce as info_nce
from kdjax.losses._contrastive import similarity_distribution as similarity_distribution
from kdjax.losses._features import attention_transfer as attention_transfer
from kdjax.losses._features import hint as hint
from kdjax.losses._graph import similarity_graph as similarity_graph
from kdjax.losses._logits import logit_mse as logit_mse
from kdjax.losses._logits import soft_target_kl as soft_target_kl
from kdjax.losses._relations import pkt as pkt
from kdjax.losses._relations import rkd_angle as rkd_angle
from kdjax.losses._relations import rkd_distance as rkd_distance
from kdjax.losses._similarity import correlation_congruence as correlation_congruence
from kdjax.losses._similarity import kernel_alignment as kernel_alignment
from kdjax.losses._similarity import kernel_congruence as kernel_congruence
from kdjax.losses._similarity import similarity_preserving as similarity_preserving

__all__ = [
    "Bank",
    "attention_transfer",
    "correlation_congruence",
    "crd",
    "draw_negatives",
    "hint",
    "info_nce",
    "init_bank",
    "kernel_alignment",
    "kernel_congruence",
    "logit_mse",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "similarity_distribution",
    "similarity_graph",
    "similarity_preserving",
    "soft_target_kl",
]
