"""The processes that are measured: each sends many streams by one library's own code."""
