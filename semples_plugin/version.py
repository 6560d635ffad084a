"""The version, alone, so that building a wheel imports nothing."""

__version__ = "0.2.0"
