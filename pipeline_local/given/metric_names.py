"""Names in metrics and summaries that a task's score cannot have."""

_OF_A_LINE = (
    *("event", "step", "epoch", "time", "stage", "replica", "modules", "module", "lr"),
    *("samples_per_second", "waiting_up", "waiting_down", "seconds", "memory_bytes"),
    *("skipped_images", "mfu", "gpu_memory_bytes", "gpu_utilization_percent", "gpu_power_watts"),
    *("gpu_temperature_celsius", "gpu_throttling"),
    *(f"gpu_{w}_{d}_bytes_per_second" for w in ("pcie", "nvlink") for d in ("sent", "received")),
)
_OF_A_MODULE = (
    *("loss", "information", "discord", "cosine", "input_norm", "signal_norm", "divergence"),
    *("feedback_cosine", "gradient_norm", "skipped_updates"),
)
_OF_A_SUMMARY = (
    *("steps", "resumed_after", "efficiency", "peak_memory_bytes", "memory_of", "predicts"),
    *("checkpoint_stall_seconds", "stage_seconds", "predicted_stage_seconds", "tokens_per_second"),
)
TAKEN = frozenset((*_OF_A_LINE, *_OF_A_MODULE, *_OF_A_SUMMARY))
"""What metrics and summaries hold beside a task's score, which has another name."""
