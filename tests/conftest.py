"""Checks every annotated shape and type of diptych while tests run. Must come before diptych is first imported.

An int may stand where a float is asked for, as PEP 484 has it.
"""

from jaxtyping import install_import_hook

install_import_hook("diptych", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
