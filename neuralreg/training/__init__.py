"""Training on many pairs: data, the loop, and what a method must offer to be trained."""

from neuralreg.training.data import Batch, Pairs, Source, Subject, Subjects, subject_from
from neuralreg.training.loop import Trained, train
from neuralreg.training.trainee import Trainee, load_trainee, save_trainee

__all__ = [
    "Batch", "Pairs", "Source", "Subject", "Subjects", "Trained", "Trainee", "load_trainee", "save_trainee",
    "subject_from", "train",
]  # fmt: skip
