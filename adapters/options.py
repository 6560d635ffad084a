"""The former name of `host_options`, for scripts that import it."""

from semples_plugin.adapters.host_options import (
    HOSTS_OWN,
    LossLog,
    add_arguments,
    build_regularizer,
    check_averaged,
    learning_options,
    preset_of,
    refuse_hosts_own,
)

__all__ = [
    "HOSTS_OWN",
    "LossLog",
    "add_arguments",
    "build_regularizer",
    "check_averaged",
    "learning_options",
    "preset_of",
    "refuse_hosts_own",
]
