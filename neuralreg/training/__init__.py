"""Training on many pairs: data, the loop, and what a method must offer to be trained."""

from neuralreg.training.augment import Augmentation
from neuralreg.training.budget import Every
from neuralreg.training.data import Batch, Pairs, Source, Subject, Subjects, subject_from
from neuralreg.training.layouts import Collection, read_collection, read_subjects
from neuralreg.training.loop import Trained, train
from neuralreg.training.split import split, with_atlas
from neuralreg.training.trainee import Trainee, load_trainee, save_trainee

__all__ = [
    "Augmentation", "Batch", "Collection", "Every", "Pairs", "Source", "Subject", "Subjects", "Trained", "Trainee",
    "load_trainee", "read_collection", "read_subjects", "save_trainee", "split", "subject_from", "train", "with_atlas",
]  # fmt: skip
