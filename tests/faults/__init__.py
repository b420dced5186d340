"""Every fault in each of its phases: what must be seen from outside, and all invariants."""
