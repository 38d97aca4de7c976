"""One small module per trace format, each turning a record into a Row; `detect` picks the one that fits a file."""
