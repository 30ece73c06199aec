"""Tasks: one file per kind of task. A registry entry owns its loss, score and labels."""

from pipeline_local.learning.tasks.classification import Classification
from pipeline_local.learning.tasks.dense import Dense
from pipeline_local.learning.tasks.multi_label import MultiLabel
from pipeline_local.learning.tasks.next_token import Logits, NextToken
from pipeline_local.learning.tasks.regression import Regression
from pipeline_local.learning.tasks.task import TASKS, Reader, Score, Task

__all__ = [
    "TASKS",
    "Classification",
    "Dense",
    "Logits",
    "MultiLabel",
    "NextToken",
    "Reader",
    "Regression",
    "Score",
    "Task",
]
