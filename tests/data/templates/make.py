#!/usr/bin/env python3
"""Makes what AlphaFold makes of template searches and structures: hmmsearch.json, the hits of hmmsearch.sto
(hmmsearch 3.3.2 with AlphaFold's options, a profile of 2q2k_A's alignment against chains of DATA/chains.tsv), and
entries.json, each chain of DATA/entries: FNV-1a 64 of its sequence, its f32 positions (-0 as 0) and its masks.

usage: PYTHONPATH=ALPHAFOLD python make.py DATA HERE          needs numpy, Biopython, absl, dm-tree
"""
import glob
import gzip
import json
import os
import sys
import types

import numpy as np

try:
    import jax
except ImportError:  # dm-tree stands for the one function that AlphaFold's constants take of JAX
    import tree

    jax = sys.modules["jax"] = types.ModuleType("jax")
    jax.tree = types.SimpleNamespace(map=tree.map_structure)
    jax.numpy = sys.modules["jax.numpy"] = np
from alphafold.data import mmcif_parsing, parsers, templates

QUERY = "MGSSHHHHHHSSGLVPGSHMDKKETKHLLKIKKEDYPQIFDFLENVPRGTKTAHIREALRRYIEEIGENP"


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def floats(array):
    return (array.astype("<f4") + np.float32(0)).tobytes()


data, here = sys.argv[1:]
a3m = parsers.convert_stockholm_to_a3m(open(f"{here}/hmmsearch.sto").read(), remove_first_row_gaps=False)
hits = [
    {k: getattr(h, k) for k in ("index", "name", "aligned_cols", "query", "hit_sequence")}
    | {k: list(getattr(h, k)) for k in ("indices_query", "indices_hit")}
    for h in parsers.parse_hmmsearch_a3m(QUERY, a3m, skip_first=False)
]
with open(f"{here}/hmmsearch.json", "w") as f:
    json.dump(hits, f)

entries = {}
for path in sorted(glob.glob(f"{data}/entries/*.cif.gz")):
    name = os.path.basename(path)
    # 3JQH has two monomers at one place: AlphaFold's sequence is one longer and its atoms are out of place.
    if name == "bp_3JQH.cif.gz":
        continue
    with gzip.open(path, "rt") as f:
        entry = mmcif_parsing.parse(file_id=name, mmcif_string=f.read()).mmcif_object
    if entry is None:
        continue
    chains = {}
    for chain, sequence in entry.chain_to_seqres.items():
        x, mask = templates._get_atom_positions(entry, chain, max_ca_ca_distance=1e9)
        chains[chain] = [fnv(sequence.encode()), fnv(floats(x)), fnv(floats(mask))]
    entries[name] = {**entry.header, "chains": chains}
with open(f"{here}/entries.json", "w") as f:
    json.dump(entries, f, indent=0)
