"""The live view: a page that shows every call of the process, its machines lit, and plays flight records."""
