#!/usr/bin/env python3
"""Makes expected.npz: 6KWC_1's alignments through AlphaFold's parsers and make_msa_features (hashes of the
whole arrays), then OpenFold's transforms of one slice with choices drawn here.

usage: PYTHONPATH=ALPHAFOLD:OPENFOLD python make.py DATA/alignments OUT.npz
"""
import gzip
import sys
import types

import numpy as np
import torch
import tree  # dm-tree stands for the one function that AlphaFold's constants take of JAX

sys.modules["jax"] = types.ModuleType("jax")
sys.modules["jax"].tree = types.SimpleNamespace(map=tree.map_structure)
from alphafold.data import parsers, pipeline
from openfold.data import data_transforms

folder, out = sys.argv[1:]


def msa_of(path):
    with (gzip.open(path, "rt") if path.endswith(".gz") else open(path)) as f:
        text = f.read()
    return parsers.parse_stockholm(text) if ".sto" in path else parsers.parse_a3m(text)


def fnv(array):
    value = 0xCBF29CE484222325
    for byte in np.ascontiguousarray(array, "<i4").tobytes():
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return np.int32(value & 0x7FFFFFFF)


expected = {}
raws = {}
for tag, files in {
    "6KWC_1": ["bfd_uniref_hits.a3m", "mgnify_hits.sto.gz"],
    "2q2k_A": ["uniref90_hits.sto", "bfd_uniclust_hits.a3m", "mgnify_hits.sto"],
    "small": ["uniref90_hits.sto", "bfd_uniclust_hits.a3m", "mgnify_hits.sto"],
}.items():
    raw = raws[tag] = pipeline.make_msa_features([msa_of(f"{folder}/{tag}/{name}") for name in files])
    expected[f"{tag}/shape"] = np.array(raw["msa"].shape, np.int32)
    expected[f"{tag}/msa_fnv"] = fnv(raw["msa"])
    expected[f"{tag}/deletion_matrix_int_fnv"] = fnv(raw["deletion_matrix_int"])
    expected[f"{tag}/deletions"] = np.int32(raw["deletion_matrix_int"].sum())

raw = raws["6KWC_1"]
n, n_res = raw["msa"].shape
n_clusters, n_extra = 16, 24
rng = np.random.default_rng(6)
protein = data_transforms.correct_msa_restypes(
    {"msa": torch.tensor(raw["msa"], dtype=torch.int64),
     "deletion_matrix": torch.tensor(raw["deletion_matrix_int"], dtype=torch.float32),
     "aatype": torch.zeros(n_res, dtype=torch.int64)})
protein = data_transforms.make_hhblits_profile(protein)
profile = protein["hhblits_profile"].numpy()
shuffle0 = 1 + rng.permutation(n - 1)
order = np.concatenate([[0], shuffle0])
whole = {k: protein[k].clone() for k in ("msa", "deletion_matrix")}
for k, v in whole.items():
    protein[k], protein["extra_" + k] = v[order[:n_clusters]], v[order[n_clusters:]]
protein["msa_mask"], protein["extra_msa_mask"] = (torch.ones(protein[k].shape) for k in ("msa", "extra_msa"))
mask = (rng.random((n_clusters, n_res)) < 0.15).astype(np.float32)
masked = np.where(mask == 1, rng.integers(0, 23, mask.shape), protein["msa"].numpy())
protein.update(true_msa=protein["msa"], bert_mask=torch.tensor(mask), msa=torch.tensor(masked))
protein = data_transforms.nearest_neighbor_clusters(gap_agreement_weight=0.0)(protein)
protein = data_transforms.summarize_clusters()(protein)
shuffle1 = rng.permutation(n - n_clusters)
for k in ("extra_msa", "extra_deletion_matrix", "extra_msa_mask"):
    protein["all_" + k] = protein[k]
    protein[k] = protein[k][shuffle1[:n_extra]]
protein["between_segment_residues"] = torch.zeros(n_res)
protein = data_transforms.make_msa_feat()(protein)

expected.update({
    "random/shuffle0": shuffle0, "random/shuffle1": shuffle1, "step1/bert_mask": mask, "step1/msa": masked,
    "profile": profile, "extra_cluster_assignment": protein["extra_cluster_assignment"].numpy(),
    "cluster_deletion_mean": protein["cluster_deletion_mean"].numpy(),
    "msa_feat": protein["msa_feat"].numpy(), "extra_msa": protein["extra_msa"].numpy(),
    "extra_has_deletion": protein["extra_has_deletion"].numpy(),
    "extra_deletion_value": protein["extra_deletion_value"].numpy()})
expected = {k: v.astype(np.float32 if v.dtype.kind == "f" else np.int32) for k, v in expected.items()}
np.savez_compressed(out, **expected)
