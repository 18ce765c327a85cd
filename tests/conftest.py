"""Checks every annotated shape and type of diptych while tests run. Must come before diptych is first imported."""

from jaxtyping import install_import_hook

install_import_hook("diptych", "beartype.beartype")
