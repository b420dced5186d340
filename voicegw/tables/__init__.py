"""State tables: find, read, check, run and draw the machines of `states/*.toml`."""
