"""Learnt parts that stand between two networks: they train with the student and are left behind when it leaves.

A connector is a pair of pure functions, `Connector`. Its parameters live beside the student's in the training state; what
it adds to the networks' features is read by terms under its name. `kdjax.connectors.bricks` has the layers that one of
your own is made of.
"""

from kdjax.connectors import bricks as bricks
from kdjax.connectors._auxiliary import auxiliary as auxiliary
from kdjax.connectors._beside import connect as connect
from kdjax.connectors._beside import connector_of as connector_of
from kdjax.connectors._beside import init_beside as init_beside
from kdjax.connectors._beside import student_of as student_of
from kdjax.connectors._beside import through as through
from kdjax.connectors._calibration import semantic_calibration as semantic_calibration
from kdjax.connectors._classifiers import average_and_dense as average_and_dense
from kdjax.connectors._classifiers import projector as projector
from kdjax.connectors._classifiers import shared_classifier as shared_classifier
from kdjax.connectors._connector import Connector as Connector
from kdjax.connectors._connector import Seen as Seen
from kdjax.connectors._connector import no_student as no_student
from kdjax.connectors._connector import read_places as read_places
from kdjax.connectors._control import controlled as controlled
from kdjax.connectors._control import observe as observe
from kdjax.connectors._embeddings import contrast as contrast
from kdjax.connectors._embeddings import embeddings as embeddings
from kdjax.connectors._embeddings import queue as queue
from kdjax.connectors._factors import paraphraser as paraphraser
from kdjax.connectors._factors import translator as translator
from kdjax.connectors._generative import masked_generative as masked_generative
from kdjax.connectors._regressors import regressor as regressor
from kdjax.connectors._regressors import variational as variational
from kdjax.connectors._review import review as review
from kdjax.connectors._temperature import learnt_temperature as learnt_temperature

__all__ = [
    "Connector",
    "Seen",
    "auxiliary",
    "average_and_dense",
    "bricks",
    "connect",
    "connector_of",
    "contrast",
    "controlled",
    "embeddings",
    "init_beside",
    "learnt_temperature",
    "masked_generative",
    "no_student",
    "observe",
    "paraphraser",
    "projector",
    "queue",
    "read_places",
    "regressor",
    "review",
    "semantic_calibration",
    "shared_classifier",
    "student_of",
    "through",
    "translator",
    "variational",
]
