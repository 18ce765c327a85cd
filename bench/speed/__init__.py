"""Diptych beside named peers: `python -m bench.speed` measures, `rows.py` lists what, `worker.py` runs one row.

One file for each kind of work has the candidates; `peers.py` imports what they are compared with.
"""
