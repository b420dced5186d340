"""The six machines' sessions: what the rows of `states/*.toml` do and ask.

No I/O, no clock, no randomness: events and the time come in, effects go out. The methods that a row names as effects
only append; those that it names as guards only look. Which of them runs when is decided by the tables alone.
"""
