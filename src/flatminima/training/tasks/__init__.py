"""What a run is about, one file per kind of task."""

from flatminima.training.data.examples import DataSet
from flatminima.training.tasks.base_to_novel import BaseToNovel
from flatminima.training.tasks.classification import Classification
from flatminima.training.tasks.contrastive import ImagesAndTexts
from flatminima.training.tasks.cosines import CosineSum
from flatminima.training.tasks.matrix_sensing import MatrixSensing
from flatminima.training.tasks.rationales import Rationales
from flatminima.training.tasks.regression import Regression
from flatminima.training.tasks.shots import Shots
from flatminima.training.tasks.task import Saw, Task, evaluating

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Classification,
        Regression,
        Rationales,
        ImagesAndTexts,
        BaseToNovel,
        MatrixSensing,
        CosineSum,
    )
}


def task_of(data: DataSet) -> Task:
    """The task that a data set is for."""
    return TASKS[data.task].of(data)


__all__ = [
    "TASKS",
    "BaseToNovel",
    "Classification",
    "CosineSum",
    "ImagesAndTexts",
    "MatrixSensing",
    "Rationales",
    "Regression",
    "Saw",
    "Shots",
    "Task",
    "evaluating",
    "task_of",
]
