"""The bytes of the voice protocol: pure functions, no I/O, no clock."""
