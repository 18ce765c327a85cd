"""Diptych: a vision-language workbench, eight-plus published systems built from one set of parts."""

__version__ = "0.2.0"
