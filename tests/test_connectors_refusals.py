"""What connectors refuse: features that do not fit, names that are taken, what stands beside no student."""

import jax
import jax.numpy as jnp
import pytest
from by_hand import made, outputs, run
from connected import head, network, paraphrased, student, teacher

from kdjax import Weights, connectors
from kdjax.connectors import Seen

PAIR = (outputs(0, f=(2, 4, 4, 3), g=(2, 5)), outputs(1, f=(2, 2, 2, 7), g=(2, 5)))


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        (lambda: connectors.regressor("h"), r"The student has no feature 'h'; it has \['f', 'g'\]"),
        (lambda: connectors.regressor("f", "h"), "The teacher has no feature 'h'"),
        (lambda: connectors.regressor("f", "g"), r"student.f must be a map .* got shapes \(2, 4, 4, 3\) and \(2, 5\)"),
        (lambda: connectors.regressor("f", depth=0), "depth must be a whole number of 1 or more; got 0"),
        (lambda: connectors.variational("f", start_variance=-1.0), "start_variance must be a finite number greater"),
        (lambda: connectors.variational("f", "g"), "student.f must be a map"),
        (lambda: connectors.embeddings("f", dim=0), "dim must be a whole number of 1 or more; got 0"),
        (lambda: connectors.contrast("f", size=1), "size must be a whole number of 2 or more; got 1"),
        (
            lambda: connectors.contrast("f", size=4, labels=[0, 1]),
            r"labels must be whole class numbers of shape \(4,\)",
        ),
        (lambda: connectors.contrast("f", size=2, labels=[1, 1]), "labels must be of two classes at least"),
        (lambda: connectors.queue("h", size=3), "The teacher has no feature 'h'"),
        (lambda: connectors.queue("f", size=0), "size must be a whole number of 1 or more; got 0"),
        (
            lambda: connectors.paraphraser("g"),
            r"teacher.g must be \[batch, height, width, channels\]; got shape \(2, 5\)",
        ),
        (lambda: connectors.paraphraser("f", rate=0.0), "rate must be a finite number greater than 0"),
        (
            lambda: connectors.translator("f", paraphraser=paraphrased()),
            "the 8 channels that the paraphraser was trained",
        ),
        (
            lambda: connectors.translator("f", paraphraser=Weights(head(), {})),
            "paraphraser must be the Weights of a trained",
        ),
        (lambda: connectors.review(()), "students must name one feature at least"),
        (lambda: connectors.review(("f", "f")), r"students must .* none twice; got \('f', 'f'\)"),
        (lambda: connectors.masked_generative("f", share=1.0), "share must be less than 1, .*; got 1.0"),
        (lambda: connectors.masked_generative("f", share=-0.1), "share must lie between 0.0 and 1.0; got -0.1"),
        (lambda: connectors.masked_generative("f", "g"), r"teacher.g must be \[batch, height.*; got shape \(2, 5\)"),
        (lambda: connectors.semantic_calibration((), batch_size=4), r"students must name one .*; got \(\)"),
        (lambda: connectors.semantic_calibration(("f",), (), batch_size=4), "teachers must name one .*; got none"),
        (
            lambda: connectors.semantic_calibration(("f",), batch_size=3),
            "batch_size must be a whole number of 4 or more",
        ),
        (lambda: connectors.semantic_calibration(("g",), batch_size=4), r"student.g must be \[batch, height"),
        (lambda: connectors.review(("f", "g"), ("f",)), r"teachers must name one feature for each of students, 2"),
        (
            lambda: connectors.projector("f", classifier_weights={"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}),
            r"classifier must turn the teacher's feature of shape \(2, 2, 2, 7\) into its logits, and cannot",
        ),
        (
            lambda: connectors.shared_classifier(
                "f", classifier_weights={"kernel": jnp.ones((7, 4)), "bias": jnp.ones(4)}
            ),
            r"into logits of shape \(2, 3\); got shape \(2, 4\)",
        ),
    ],
)
def test_what_cannot_be_connected_is_a_named_error(connector, words):
    with pytest.raises(ValueError, match=words):
        connector().init(jax.random.key(0), *PAIR)


def test_a_name_that_is_taken_and_a_batch_without_indices_are_named_errors():
    data = jnp.ones((2, 4, 4, 2))
    rest = (jax.random.key(0), network, student(), network, teacher(), data)
    with pytest.raises(ValueError, match="The connector 'stage1' would add 'stage1' to the student's features"):
        connectors.init_beside({"stage1": connectors.regressor("stage1")}, *rest)
    clash = {"a": connectors.variational("f"), "a_raw_variance": connectors.regressor("f")}
    weights = {name: made(connector, *PAIR) for name, connector in clash.items()}
    trees = [{name: one[part] for name, one in weights.items()} for part in (0, 1)]
    with pytest.raises(ValueError, match="The connector 'a_raw_variance' would add 'a_raw_variance'"):
        connectors.connect(clash, *trees, *PAIR, {}, train=True)
    contrast = connectors.contrast("g", size=5, dim=2, negatives=2)
    with pytest.raises(ValueError, match='batch must have "indices"'):
        run(contrast, made(contrast, *PAIR), *PAIR)
    with pytest.raises(ValueError, match="rng must be a key"):
        contrast.apply(*made(contrast, *PAIR), Seen(*PAIR, {"indices": jnp.arange(2)}, True, None))
    masked, calibrated = connectors.masked_generative("f"), connectors.semantic_calibration(("f",), batch_size=4)
    with pytest.raises(ValueError, match="rng must be a key while training a masked student; got None"):
        masked.apply(*made(masked, *PAIR), Seen(*PAIR, {}, True, None))
    with pytest.raises(ValueError, match="The batch must have the connector's batch_size, 4 examples; got 2"):
        run(calibrated, made(calibrated, *PAIR), *PAIR)
    with pytest.raises(ValueError, match="A connector reads the teacher's feature 'f', and there is no teacher"):
        run(connectors.regressor("f"), made(connectors.regressor("f"), *PAIR), PAIR[0], None)
    with pytest.raises(ValueError, match="teacher must be cached Outputs where teacher_apply is None; got Weights"):
        connectors.init_beside({}, jax.random.key(0), network, student(), None, teacher(), data)


def test_what_a_connector_says_it_reads_has_to_be_there():
    made_of = connectors.regressor("stage1")
    for reads, words in (
        (("stage1",), r"A connector's place must be \"student.NAME\" or \"teacher.NAME\"; got 'stage1'"),
        (("teacher.stage11",), r"The teacher has no feature 'stage11'; .* Did you mean 'stage1'"),
    ):
        beside = {"c": made_of._replace(reads=reads)}
        with pytest.raises(ValueError, match=words):
            connectors.init_beside(
                beside, jax.random.key(0), network, student(), network, teacher(), jnp.ones((2, 4, 4, 2))
            )


def test_only_what_stands_beside_connectors_can_be_left_alone():
    with pytest.raises(ValueError, match=r"The params must be a student's and connectors'.*got \['bias'"):
        connectors.student_of(student())
    beside = connectors.init_beside(
        {"hint": connectors.regressor("stage1")},
        jax.random.key(0),
        network,
        student(),
        network,
        teacher(),
        jnp.ones((2, 4, 4, 2)),
    )
    with pytest.raises(ValueError, match=r"name must be one of hint; got 'hnt'\. Did you mean 'hint'"):
        connectors.connector_of(beside, "hnt")
    with pytest.raises(ValueError, match="A connector reads the teacher's feature"):
        connectors.through(network, {"hint": connectors.regressor("stage1")}, "hint")(
            *beside, jnp.ones((2, 4, 4, 2)), train=False
        )
