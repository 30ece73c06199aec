from typing import Any

from pipeline_local import moved


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the file defines)
    return moved.from_file(__name__, name)
