"""Losses with mistakes that are made: tutorials' own among them. Each runs, and most of them train."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import rkd_distance, soft_target_kl


def log_probabilities_as_targets(student, teacher, *, temperature=4.0):
    """The divergence takes the logarithm of what is a logarithm already."""
    log_student, log_teacher = (jax.nn.log_softmax(z / temperature) for z in (student, teacher))
    return temperature**2 * jnp.sum(log_teacher * (jnp.log(log_teacher) - log_student), axis=-1)


def probabilities_as_logarithms(student, teacher, *, temperature=4.0):
    """The student's softmax where its logarithm belongs."""
    of_student, of_teacher = (jax.nn.softmax(z / temperature) for z in (student, teacher))
    return temperature**2 * jnp.sum(of_teacher * (jnp.log(of_teacher) - of_student), axis=-1)


def without_the_square(student, teacher, *, temperature=4.0):
    """1/T² as large as it should be."""
    return soft_target_kl(student, teacher, temperature=temperature) / jnp.asarray(temperature) ** 2


def exchanged(student, teacher, *, temperature=4.0):
    """KL(student ‖ teacher)."""
    return soft_target_kl(teacher, student, temperature=temperature)


def mean_over_the_batch(student, teacher, *, temperature=4.0):
    """One number for the batch."""
    return soft_target_kl(student, teacher, temperature=temperature).mean()


def mean_for_each(student, teacher, *, temperature=4.0):
    """The batch's mean in every example's place."""
    values = soft_target_kl(student, teacher, temperature=temperature)
    return jnp.full_like(values, values.mean())


def naive_softmax(student, teacher, *, temperature=4.0):
    """exp without the largest taken off, and a logarithm of what may be 0."""
    of_student, of_teacher = (
        jnp.exp(z / temperature) / jnp.exp(z / temperature).sum(axis=-1, keepdims=True) for z in (student, teacher)
    )
    return temperature**2 * jnp.sum(of_teacher * (jnp.log(of_teacher) - jnp.log(of_student)), axis=-1)


def half_precision(student, teacher, *, temperature=4.0):
    """Computed in the dtype that it is given."""
    log_student, log_teacher = (jax.nn.log_softmax(z / jnp.asarray(temperature, z.dtype)) for z in (student, teacher))
    return jnp.asarray(temperature, log_student.dtype) ** 2 * jnp.sum(
        jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1
    )


def static_temperature(student, teacher, *, temperature=4.0):
    """A branch in Python on a number that a schedule may want to move."""
    if temperature <= 0:
        raise ValueError(f"temperature must be greater than 0; got {temperature}")
    return soft_target_kl(student, teacher, temperature=temperature)


def hidden_nan(student, teacher, *, temperature=4.0):
    """NaN becomes 0: a broken network looks like a good one."""
    return jnp.nan_to_num(soft_target_kl(student, teacher, temperature=temperature))


def detached_student(student, teacher):
    """Both networks' features detached: there is a value, and no gradient."""
    student, teacher = (
        a / jnp.linalg.norm(a, axis=-1, keepdims=True).clip(1e-6) for a in (jax.lax.stop_gradient(student), teacher)
    )
    return jnp.sum((student - teacher) ** 2, axis=-1)


def naive_distances(student, teacher):
    """RKD with a square root at 0, whose slope is infinite."""

    def distances(a):
        return jnp.sqrt(jnp.sum((a[:, None] - a[None]) ** 2, axis=-1))

    return jnp.sum(jnp.abs(distances(student) - distances(teacher)), axis=-1) / len(student)


def alignment_called_pkt(student, teacher):
    """Kernel alignment under the name of PKT, which does not depend on an example's length."""

    def gram(a):
        return a.reshape(len(a), -1) @ a.reshape(len(a), -1).T

    of_student, of_teacher = gram(student), gram(teacher)
    sizes = jnp.linalg.norm(of_student) * jnp.linalg.norm(of_teacher)
    return jnp.sum(of_student * of_teacher, axis=-1) / -sizes + 1 / len(student)


def mask_without_effect(student, teacher, *, where=None):
    """Takes `where` and counts every example."""
    values = rkd_distance(student, teacher)
    return values if where is None else jnp.where(where, values, 0.0)


def kl(student, teacher, *, temperature=4.0):
    """The slow reference of the first ten, from Hinton et al. (2015), section 2: T² · Σ p_t (log p_t − log p_s)."""
    rows = []
    for z_student, z_teacher in zip(student / temperature, teacher / temperature, strict=True):
        log_student, log_teacher = (z - z.max() - np.log(np.sum(np.exp(z - z.max()))) for z in (z_student, z_teacher))
        rows.append(temperature**2 * np.sum(np.exp(log_teacher) * (log_teacher - log_student)))
    return np.array(rows)
