"""The voice layer of Discord for every Python bot: join, play, listen, record, end-to-end encrypted."""
