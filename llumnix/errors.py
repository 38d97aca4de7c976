"""The errors a user can meet. Every message says what was wrong and what to type instead.

LlumnixError
├── ConfigError    a value in the configuration is wrong; nothing has run yet
└── TraceError     a trace file is missing, empty, broken, or of an unknown format
"""


class LlumnixError(Exception):
    """Base of all errors whose message is meant for the user; the command line prints it without a traceback."""


class ConfigError(LlumnixError, ValueError):
    """A configuration value is out of range or inconsistent with another."""


class TraceError(LlumnixError):
    """A trace cannot be read: not there, no usable row, or not in a known format."""
