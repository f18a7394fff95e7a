"""Losses: arrays in, one number per example out. Each stands alone and may be lifted into anybody's own code."""

from kdjax.losses._activation_signs import activation_boundary as activation_boundary
from kdjax.losses._activation_signs import negative_margin as negative_margin
from kdjax.losses._activation_signs import overhaul as overhaul
from kdjax.losses._attention import attention_transfer as attention_transfer
from kdjax.losses._attention import factor_transfer as factor_transfer
from kdjax.losses._attention import neuron_selectivity as neuron_selectivity
from kdjax.losses._bank import Bank as Bank
from kdjax.losses._bank import draw_negatives as draw_negatives
from kdjax.losses._bank import init_bank as init_bank
from kdjax.losses._channels import channel_wise as channel_wise
from kdjax.losses._channels import class_attention as class_attention
from kdjax.losses._channels import inter_channel_correlation as inter_channel_correlation
from kdjax.losses._contrastive import crd as crd
from kdjax.losses._contrastive import info_nce as info_nce
from kdjax.losses._contrastive import similarity_distribution as similarity_distribution
from kdjax.losses._decoupled import decoupled_kd as decoupled_kd
from kdjax.losses._decoupled import non_target_class_kd as non_target_class_kd
from kdjax.losses._decoupled import normalized_kd as normalized_kd
from kdjax.losses._decoupled import target_class_kd as target_class_kd
from kdjax.losses._divergences import reverse_skewed_kl as reverse_skewed_kl
from kdjax.losses._divergences import skewed_kl as skewed_kl
from kdjax.losses._divergences import sorted_probabilities as sorted_probabilities
from kdjax.losses._divergences import total_variation as total_variation
from kdjax.losses._features import cosine as cosine
from kdjax.losses._features import hierarchical_context as hierarchical_context
from kdjax.losses._features import hint as hint
from kdjax.losses._features import variational_information as variational_information
from kdjax.losses._flow import fsp as fsp
from kdjax.losses._flow import sequence_angles as sequence_angles
from kdjax.losses._graph import similarity_graph as similarity_graph
from kdjax.losses._guided import virtual_teacher as virtual_teacher
from kdjax.losses._guided import weighted_soft_labels as weighted_soft_labels
from kdjax.losses._levels import multi_level_batch as multi_level_batch
from kdjax.losses._levels import multi_level_class as multi_level_class
from kdjax.losses._levels import multi_level_instance as multi_level_instance
from kdjax.losses._linear import linear_cross_entropy as linear_cross_entropy
from kdjax.losses._linear import linear_jensen_shannon as linear_jensen_shannon
from kdjax.losses._linear import linear_reverse_kl as linear_reverse_kl
from kdjax.losses._linear import linear_soft_target_kl as linear_soft_target_kl
from kdjax.losses._logits import jensen_shannon as jensen_shannon
from kdjax.losses._logits import logit_mse as logit_mse
from kdjax.losses._logits import reverse_kl as reverse_kl
from kdjax.losses._logits import soft_target_bce as soft_target_bce
from kdjax.losses._logits import soft_target_kl as soft_target_kl
from kdjax.losses._own_labels import uskd_non_target as uskd_non_target
from kdjax.losses._own_labels import uskd_target as uskd_target
from kdjax.losses._patterns import dist as dist
from kdjax.losses._patterns import standardize_logits as standardize_logits
from kdjax.losses._patterns import standardized_kd as standardized_kd
from kdjax.losses._relations import pkt as pkt
from kdjax.losses._relations import rkd_angle as rkd_angle
from kdjax.losses._relations import rkd_distance as rkd_distance
from kdjax.losses._similarity import correlation_congruence as correlation_congruence
from kdjax.losses._similarity import kernel_alignment as kernel_alignment
from kdjax.losses._similarity import kernel_congruence as kernel_congruence
from kdjax.losses._similarity import similarity_preserving as similarity_preserving
from kdjax.losses._stored import sampled_kl as sampled_kl
from kdjax.losses._stored import top_k_kl as top_k_kl
from kdjax.losses._token_sums import linear_weighted_sum as linear_weighted_sum

__all__ = [
    "Bank",
    "activation_boundary",
    "attention_transfer",
    "channel_wise",
    "class_attention",
    "correlation_congruence",
    "cosine",
    "crd",
    "decoupled_kd",
    "dist",
    "draw_negatives",
    "factor_transfer",
    "fsp",
    "hierarchical_context",
    "hint",
    "info_nce",
    "init_bank",
    "inter_channel_correlation",
    "jensen_shannon",
    "kernel_alignment",
    "kernel_congruence",
    "linear_cross_entropy",
    "linear_jensen_shannon",
    "linear_reverse_kl",
    "linear_soft_target_kl",
    "linear_weighted_sum",
    "logit_mse",
    "multi_level_batch",
    "multi_level_class",
    "multi_level_instance",
    "negative_margin",
    "neuron_selectivity",
    "non_target_class_kd",
    "normalized_kd",
    "overhaul",
    "pkt",
    "reverse_kl",
    "reverse_skewed_kl",
    "rkd_angle",
    "rkd_distance",
    "sampled_kl",
    "sequence_angles",
    "similarity_distribution",
    "similarity_graph",
    "similarity_preserving",
    "skewed_kl",
    "soft_target_bce",
    "soft_target_kl",
    "sorted_probabilities",
    "standardize_logits",
    "standardized_kd",
    "target_class_kd",
    "top_k_kl",
    "total_variation",
    "uskd_non_target",
    "uskd_target",
    "variational_information",
    "virtual_teacher",
    "weighted_soft_labels",
]
