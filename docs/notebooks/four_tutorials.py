# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Four tutorials in one notebook
#
# Four tutorials gave kdjax its beginning: *the distillation pipeline* and *a first example*, both in PyTorch, *from
# principle to practice* in Keras, and *three basic families*, which goes through losses on logits, features and
# relations. This notebook follows all four on one small data set, step by step, with code that you may change. It
# takes about a minute on two CPU cores; the numbers on this page are of two cores of an AMD EPYC with jax 0.10.2, and
# on another processor some will differ.
#
# It is a plain Python file, [four_tutorials.py](four_tutorials.py). `jupytext --to ipynb four_tutorials.py` makes a
# notebook of it, and a test runs it with fewer epochs. For MNIST, with the tutorials' own networks and numbers, see
# `experiments/README.md`.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from kdjax import (
    cross_entropy,
    init_state,
    losses,
    make_train_step,
    metrics,
    on_feature,
    on_logits,
    schedules,
    weighted_sum,
)
from kdjax.batches import epoch_indices
from kdjax.caching import cache_teacher
from kdjax.data import load, on_device, unit_range
from kdjax.models import CNN
from kdjax.networks import copy_matching, from_linen
from kdjax.runs.pictures import image_grid, learning_curves, prediction_grid
from kdjax.training import make_epoch, make_evaluation, weights_of

TEACHER_EPOCHS, EPOCHS, SEEDS = 20, 60, 4

# %% [markdown]
# ## The data
#
# 1,797 scans of handwritten digits, 8 × 8 pixels each, come with scikit-learn: 1,257 to train on, 360 to test, the
# others for validation. Here are the first nine with their labels.

# %% alt="The first nine training digits, each under its label"
digits, unseen = load("digits", "train"), load("digits", "test")
train, test = on_device(digits, unit_range), on_device(unseen, unit_range)
image_grid(digits.inputs[:9], [digits.class_names[label] for label in digits.labels[:9]])

# %% [markdown]
# ## Two networks
#
# The tutorials' networks are convolutional, a large one and a small one of the same kind. The small one is for a
# device with little memory and little time, so what it costs is measured along with what it knows: parameters,
# multiplications and additions as XLA counts them, and the time for one picture.

# %%
init_teacher, teach = from_linen(CNN(widths=(32, 64), hidden=64, batch_norm=True, dropout=0.3))
init_student, study = from_linen(CNN(widths=(4, 8), hidden=16))
one = train["inputs"][:1]
for name, init, apply in (("teacher", init_teacher, teach), ("student", init_student, study)):
    weights = init(jax.random.key(0), one)
    cost, time = metrics.cost(apply, weights, one), metrics.latency(apply, weights, one, seconds=0.5)
    count = metrics.parameter_count(weights.params)
    print(f"{name}: {count:,} parameters, {cost.flops:,.0f} FLOPs, {time.median_ms:.3f} ms a picture")

# %% [markdown]
# ## The teacher
#
# A step takes the student's state, the teacher, an objective and a batch. The teacher learns from labels alone, so
# its teacher is None. What happens between two epochs is your own Python: here a line is printed.


# %%
def adam(epochs):
    updates = epochs * (len(train["labels"]) // 32)
    return optax.adam(optax.cosine_decay_schedule(1e-2, updates))


def fit(epoch, state, objective, arrays, epochs, seed, evaluate=None):
    records = []
    for number in range(epochs):
        order = epoch_indices(len(train["labels"]), 32, seed=seed, epoch=number)
        state, means = epoch(state, None, objective, arrays, order)
        if evaluate is not None:
            records.append({"epoch": number + 1, "train": means, "test": evaluate(weights_of(state), test)})
    return weights_of(state), records


from_labels = weighted_sum(labels=(1.0, cross_entropy))
epoch = make_epoch(make_train_step(teach, None, adam(TEACHER_EPOCHS)))
state = init_state(init_teacher(jax.random.key(1), one), adam(TEACHER_EPOCHS), jax.random.key(1))
teacher, of_teacher = fit(epoch, state, from_labels, train, TEACHER_EPOCHS, 0, make_evaluation(teach))
for record in of_teacher[:: max(1, TEACHER_EPOCHS // 5)]:
    print(
        f"epoch {record['epoch']:2}  loss {record['train']['loss']:.3f}  test accuracy {record['test']['accuracy']:.2%}"
    )
print(f"at the end: {of_teacher[-1]['test']['accuracy']:.2%} of {len(unseen.labels)} test digits")

# %% [markdown]
# ## What the teacher knows beyond the labels
#
# A label says *this is an 8*. The teacher also says what else it might have been. Dividing the logits by a
# temperature T before the softmax makes that visible: towards T = 0 only the first class is left, at T = 1 it is the
# plain softmax, and above it the likeness of the classes shows. Below is the test digit of which the teacher is least
# sure.

# %% alt="The teacher's probabilities of ten classes for one digit, at T = 1, 4 and 10: the higher, the flatter"
logits = np.asarray(teach(*teacher, test["inputs"], train=False)[0].logits)
unsure = int(jax.nn.softmax(logits).max(axis=1).argmin())
figure, axes = plt.subplots(1, 4, figsize=(9, 2.2), layout="constrained")
axes[0].imshow(unseen.inputs[unsure, ..., 0], cmap="gray")
axes[0].set(title=f"label {unseen.labels[unsure]}", xticks=[], yticks=[])
for axis, temperature in zip(axes[1:], (1, 4, 10), strict=True):
    axis.bar(range(10), jax.nn.softmax(logits[unsure] / temperature), color="#0072b2")
    axis.set(title=f"T = {temperature}", ylim=(0, 1), xticks=range(10), xlabel="class")

# %% [markdown]
# ## The student alone, and with the teacher
#
# The loss that three of the four tutorials use has two parts: cross-entropy with the labels, and T² times the
# Kullback–Leibler divergence of the student's soft predictions from the teacher's. The weights add up to 1. The
# factor T² makes up for what dividing by T takes from the gradient.
#
# The teacher does not change, so it runs over the training data once and its outputs are kept. Every way below starts
# from the same weights and sees the same batches in the same order; seed by seed the difference is what the teacher
# changed.


# %%
taught = train | cache_teacher(teach, teacher, train["inputs"], features=("stage2", "embedding"))
evaluate = make_evaluation(study)
student_epoch = make_epoch(make_train_step(study, None, adam(EPOCHS)))
found = {}


def try_out(name, objective, start=lambda weights: weights):
    arrays = train if name == "alone" else taught
    students = []
    for seed in range(SEEDS):
        weights = start(init_student(jax.random.key(seed), one))
        state = init_state(weights, adam(EPOCHS), jax.random.key(seed))
        students.append(fit(student_epoch, state, objective, arrays, EPOCHS, seed)[0])
    accuracies = [100 * evaluate(student, test)["accuracy"] for student in students]
    found[name] = (students, accuracies)
    print(f"{name}: {metrics.mean_interval(accuracies):.2f} %")


def soft_targets(temperature=4.0, labels=0.3, soft=0.7, **more):
    divergence = on_logits(losses.soft_target_kl, temperature=temperature)
    return weighted_sum(labels=(labels, cross_entropy), soft=(soft, divergence), **more)


try_out("alone", from_labels)
try_out("soft targets", soft_targets())

# %% [markdown]
# ## Variations of the pipeline
#
# The first tutorial names more: the mean squared error of the logits in the place of the divergence; no labels at
# all, as the Keras tutorial trains; a student that starts from a part of the teacher, here the channels with the
# largest filters; and numbers that move while training goes on. Any number of an objective may be a schedule.

# %%
updates = EPOCHS * (len(train["labels"]) // 32)
try_out("logits", weighted_sum(labels=(0.3, cross_entropy), logits=(0.7, on_logits(losses.logit_mse))))
try_out("no labels", weighted_sum(soft=(1.0, on_logits(losses.soft_target_kl, temperature=4.0))))
try_out(
    "schedules",
    soft_targets(
        temperature=schedules.linear(8.0, 2.0, steps=updates),
        labels=schedules.linear(0.1, 0.3, steps=updates),
        soft=schedules.linear(0.9, 0.7, steps=updates),
    ),
)


def part_of_teacher(weights):
    order = ("stage1", "stage2", "hidden", "logits")
    chosen, _ = copy_matching(teacher, weights, channels="largest", order=order)
    return jax.tree.map(jnp.copy, chosen)


try_out("from the teacher", soft_targets(), start=part_of_teacher)

# %% [markdown]
# ## Three families
#
# Soft targets are about **logits**. Two other families are about what lies before them. **Features**: where in the
# picture a layer is active, averaged over its channels, so that a teacher of 64 channels can teach a student of 8.
# **Relations**: how examples of a batch lie to each other, by distances or by angles; the sizes of the two embeddings
# do not matter. Each is one more named term.

# %%
try_out("features", soft_targets(attention=(20.0, on_feature(losses.attention_transfer, "stage2"))))
try_out("relations", soft_targets(angles=(2.0, on_feature(losses.rkd_angle, "embedding"))))

# %% [markdown]
# ## Which of them helps?
#
# The bars are 95 % intervals of the difference from the student alone, paired by seed. Where one reaches over zero
# these seeds show no difference, and a few seeds are few: take 8 or more, and choose on the validation split, before
# you believe a row.

# %% alt="Gain in test accuracy over the student alone, a row for each way, with 95 % intervals"
alone = found["alone"][1]
gains = {name: metrics.paired_difference(its, alone) for name, (_, its) in found.items() if name != "alone"}
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for row, gain in enumerate(gains.values()):
    axis.errorbar(gain.mean, row, xerr=gain.half_width, fmt="o", color="#0072b2", capsize=3)
axis.axvline(0, color="#555555", linewidth=1)
axis.set_yticks(range(len(gains)), gains)
axis.invert_yaxis()
axis.set_xlabel(f"points of test accuracy over the student alone, {SEEDS} seeds")
axis.grid(axis="x", alpha=0.3)
for name, gain in gains.items():
    print(f"{name:17} {gain:+.2f} points{'' if gain.excludes_zero else ', no difference that these seeds show'}")

# %% [markdown]
# ## Other measures
#
# The *transfer rate* is the part of the teacher's lead over the student alone that the distilled student has gained.
# *Agreement* is how often student and teacher say the same, right or wrong. *CKA* compares what the two networks make
# of the same digits, and is 1 where one is a rotation of the other.

# %%
lead = 100 * of_teacher[-1]["test"]["accuracy"]
outputs = teach(*teacher, test["inputs"], train=False)[0]
for name in ("alone", "soft targets", "features", "relations"):
    students, accuracies = found[name]
    its = study(*students[0], test["inputs"], train=False)[0]
    rate = metrics.accuracy_transfer_rate(np.mean(accuracies), np.mean(alone), lead)
    same = metrics.agreement(its.logits, outputs.logits)
    alike = metrics.cka(its.features["embedding"], outputs.features["embedding"])
    print(f"{name:13} transfer rate {rate:6.1%}   agreement {same:.1%}   CKA of the embeddings {alike:.2f}")

# %% [markdown]
# ## Learning curves
#
# The first seed's student again, alone and with the teacher, measured after every epoch.

# %% alt="Test accuracy by epoch of the teacher, the student alone and the distilled student"
curves = {"teacher": of_teacher}
for name, objective, arrays in (("alone", from_labels, train), ("distilled", soft_targets(), taught)):
    state = init_state(init_student(jax.random.key(0), one), adam(EPOCHS), jax.random.key(0))
    _, curves[name] = fit(student_epoch, state, objective, arrays, EPOCHS, 0, evaluate)
learning_curves(curves)

# %% [markdown]
# ## Side by side
#
# Test digits with both predictions and their probabilities: those on which teacher and student differ first.

# %% alt="Nine test digits, each with the teacher's and the student's prediction and probability"
logits = study(*found["soft targets"][0][0], test["inputs"], train=False)[0].logits
differ = np.asarray(logits.argmax(axis=1) != outputs.logits.argmax(axis=1))
chosen = np.argsort(~differ, kind="stable")[:9]
prediction_grid(
    unseen.inputs[chosen], unseen.labels[chosen], outputs.logits[chosen], logits[chosen], unseen.class_names
)

# %% [markdown]
# ## Where the tutorials' own code is wrong
#
# Each of the four has a mistake that runs without an error: a softmax where logarithms are expected, or the other way
# round; no T²; a detached student, which then learns nothing; the logarithm of a masked zero; batches that are never
# shuffled. [Common mistakes](../common-mistakes.md) has each beside the right form, with what it costs.
#
# ## Where next
#
# - One call for all of this, with several seeds, a report and resumption: [getting started](../getting-started.md).
# - The same without Python: [the command line](../command.md).
# - Several teachers, teachers that learn too, phases, each with an example: [ways to distil](../strategies/index.md).
# - The student on a phone: [exporting a student](../export.md).
