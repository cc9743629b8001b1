"""Builders that several test folders share. On the path through `pythonpath = ["tests"]`."""
