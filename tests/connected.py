"""Every connector with its term, on two tiny networks: what the tests of connectors share."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import softmax_cross_entropy_with_integer_labels

from kdjax import Outputs, Weights, computed, connectors, init_state, on_feature, on_outputs, weighted_sum
from kdjax.losses import (
    factor_transfer,
    hierarchical_context,
    hint,
    info_nce,
    logit_mse,
    similarity_distribution,
    soft_target_kl,
    variational_information,
)

BATCH, CLASSES = 8, 3


def network(params, model_state, inputs, *, train, rng=None):
    """Maps of 4 × 4 and 2 × 2, a vector and logits, by products alone: nothing here takes long to compile."""
    stage1 = jnp.maximum(x := inputs @ params["stage1"], 0.2 * x)
    halved = stage1.reshape(inputs.shape[0], 2, 2, 2, 2, -1).mean((2, 4))
    stage2 = jnp.maximum(x := halved @ params["stage2"], 0.2 * x)
    embedding = stage2.mean((1, 2)) @ params["embedding"]
    features = {"stage1": stage1, "stage2": stage2, "embedding": embedding}
    return Outputs(embedding @ params["kernel"] + params["bias"][None], features), model_state


def weights(seed, *widths):
    sizes = dict(zip(("stage1", "stage2", "embedding"), zip((2, *widths), widths, strict=False), strict=True))
    sizes["kernel"] = (widths[-1], CLASSES)
    random = np.random.default_rng(seed)
    params = {name: np.float32(random.normal(size=(a, b)) * (2 / a) ** 0.5) for name, (a, b) in sizes.items()}
    return Weights(params | {"bias": np.zeros(CLASSES, np.float32)}, {})


@cache
def student():
    return weights(0, 3, 4, 5)


@cache
def teacher():
    return weights(1, 6, 8, 7)


@cache
def _batch(seed):
    return {
        "inputs": np.float32(np.random.default_rng(seed).normal(size=(BATCH, 4, 4, 2))),
        "labels": np.arange(BATCH, dtype=np.int32) % CLASSES,
        "indices": (np.arange(BATCH, dtype=np.int32) * 3 + seed) % 24,
    }


def batch(seed=0):
    return dict(_batch(seed))


def head():
    return {"kernel": teacher().params["kernel"], "bias": teacher().params["bias"]}


def paraphrased():
    """The weights of a paraphraser that no training has made better."""
    shapes = Outputs(None, {"stage2": jax.ShapeDtypeStruct((2, 2, 2, 8), jnp.float32)})
    return connectors.paraphraser("stage2").init(jax.random.key(9), shapes, shapes)


# By name: the connectors, and the terms that read them.
ROWS = {
    "regressor": ({"c": connectors.regressor("stage1", "stage2", normalize=True)}, {"t": on_feature(hint, "c")}),
    "deep_regressor": ({"c": connectors.regressor("embedding", depth=2, width=6)}, {"t": on_feature(hint, "c")}),
    "variational": (
        {"c": connectors.variational("stage2", "stage1")},
        {"t": on_outputs(variational_information, "student.c", "teacher.c", raw_variance="student.c_raw_variance")},
    ),
    "embeddings": (
        {"c": connectors.embeddings("embedding", dim=4)},
        {"t": on_feature(info_nce, "c", temperature=0.5)},
    ),
    "contrast": (
        {
            "c": connectors.contrast(
                "embedding", size=24, dim=4, negatives=6, labels=jnp.arange(24) % CLASSES, temperature=0.5, chunk=4
            )
        },
        {"t": computed("c")},
    ),
    "queue": (
        {"x": connectors.regressor("embedding"), "c": connectors.queue("embedding", size=11)},
        {
            "t": on_outputs(
                similarity_distribution, "student.x", "teacher.x", "teacher.c_queue", temperatures=(0.2, 0.1)
            )
        },
    ),
    "paraphraser": ({"c": connectors.paraphraser("stage2")}, {"t": on_feature(hint, "c")}),
    "translator": (
        {"c": connectors.translator("stage1", "stage2", paraphraser=paraphrased())},
        {"t": on_feature(factor_transfer, "c")},
    ),
    "review": (
        {"c": connectors.review(("stage1", "stage2", "embedding"))},
        {f"t{i}": on_feature(hierarchical_context, f"c_{i}") for i in (1, 2, 3)},
    ),
    "projector": (
        {"c": connectors.projector("embedding", classifier_weights=head())},
        {"t": on_feature(hint, "c"), "u": on_feature(logit_mse, "c_logits")},
    ),
    "shared_classifier": (
        {"c": connectors.shared_classifier("embedding", classifier_weights=head())},
        {"t": on_feature(hint, "c"), "u": on_feature(logit_mse, "c_logits")},
    ),
}
ROWS["auxiliary"] = (
    {"c": connectors.auxiliary("stage1", width=4)},
    {
        "t": on_feature(soft_target_kl, "c", temperature=2.0),
        "u": on_outputs(softmax_cross_entropy_with_integer_labels, "student.c"),
    },
)
ROWS["masked_generative"] = (
    {"c": connectors.masked_generative("stage1", share=0.3)},
    {"t": on_feature(hint, "c")},
)
ROWS["semantic_calibration"] = (
    {"c": connectors.semantic_calibration(("stage1", "stage2"), batch_size=BATCH)},
    {"t": computed("c")},
)
# Batch normalisation, a bank, a queue and frozen arrays in one step.
TOGETHER = ("regressor", "contrast", "queue", "shared_classifier")
ROWS["together"] = (
    {"c": ROWS["regressor"][0]["c"]}
    | {"x": connectors.regressor("embedding")}
    | {name: ROWS[name][0]["c"] for name in TOGETHER[1:]},
    {
        "regressor": on_feature(hint, "c"),
        "contrast": computed("contrast"),
        "queue": on_outputs(
            similarity_distribution, "student.x", "teacher.x", "teacher.queue_queue", temperatures=(0.2, 0.1)
        ),
        "shared_classifier": on_feature(logit_mse, "shared_classifier_logits"),
    },
)


def objective(name):
    return weighted_sum(**{term: (1.0, function) for term, function in ROWS[name][1].items()})


def beside(name, seed=3):
    shape = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)
    make = partial(connectors.init_beside, ROWS[name][0], student_apply=network, teacher_apply=network, inputs=shape)
    return jax.jit(lambda rng, own, others: make(rng=rng, student=own, teacher=others))(
        jax.random.key(seed), student(), teacher()
    )


def optimizer():
    # Not Adam: it scales gradients that are rounding noise up to full steps, and no two programs round alike.
    return optax.sgd(0.05, momentum=0.9)


def fresh_state(name, transform=None):
    return init_state(beside(name), transform or optimizer(), jax.random.key(5))
