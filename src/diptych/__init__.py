"""Diptych: a vision-language workbench; published systems built from one set of parts, trained and compared."""

__version__ = "0.2.0"
