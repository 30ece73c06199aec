"""TensorBoard: event files in the run folder, without torch or TensorFlow."""

from collections.abc import Sequence
from typing import Any

from pipeline_local.loggers.logger import LoggedRun
from pipeline_local.loggers.rows import LogRow


class TensorBoard:
    """Writes event files to `tensorboard/` of the run folder; see `Logger`.

    Args:
        run: the run.
        where: true.
    """

    address = None

    def __init__(self, run: LoggedRun, where: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder / "tensorboard"))
        if run.step:  # steps after it are done again: TensorBoard forgets them
            begin = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=run.step + 1, session_log=begin))
        self._writer.add_event(Event(step=run.step, summary=_hyperparameters(run.config)))
        self._writer.flush()

    def write(self, rows: Sequence[LogRow]) -> None:
        """Write an event for each row."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=k, simple_value=v) for k, v in row.values.items()]
            event = Event(wall_time=row.time, step=row.step, summary=Summary(value=values))
            self._writer.add_event(event)
        self._writer.flush()

    def close(self, code: int) -> None:
        """Close the file."""
        self._writer.close()


def _hyperparameters(config: dict[str, Any]) -> Any:  # noqa: ANN401 (a message of TensorBoard's)
    """As tensorboard.plugins.hparams.summary makes it, which needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION)
    for key, value in config.items():
        shown = data.session_start_info.hparams[key]
        if isinstance(value, bool):
            shown.bool_value = value
        elif isinstance(value, int | float):
            shown.number_value = value
        else:
            shown.string_value = str(value)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    about = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=metadata.SESSION_START_INFO_TAG, metadata=about)])
