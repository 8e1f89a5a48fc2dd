#!/usr/bin/env python3
"""Featurisation by fastfold and by OpenFold, one after the other on the same files: seconds and ratios.

usage: PYTHONPATH=OPENFOLD_SOURCE python compare_features.py FASTFOLD QUERY.fasta ALIGNMENTS_DIR [PRESET [THREADS]]

Both read and unpack the alignment files, parse, merge and encode them, and make one slice of the
preset's processed features (without templates). The best of three runs counts for OpenFold, of ten for
fastfold.
"""
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time

program, fasta, folder = sys.argv[1:4]
preset = sys.argv[4] if len(sys.argv) > 4 else "model_1"
threads = sys.argv[5] if len(sys.argv) > 5 else "2"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = threads

import torch
from openfold.config import model_config
from openfold.data import data_pipeline, feature_pipeline, parsers

torch.set_num_threads(int(threads))


def files():
    order = ["uniref90", "bfd", "small_bfd", "mgnify"]
    names = [n for n in os.listdir(folder) if n.split("_")[0] in ("uniref90", "bfd", "small", "mgnify")]
    return sorted(names, key=lambda n: [n.startswith(o) for o in order].index(True))


def read(name):
    path = os.path.join(folder, name)
    with (gzip.open(path, "rt") if name.endswith(".gz") else open(path)) as f:
        return f.read()


def slice_config():
    config = model_config(preset).data
    config.common.max_recycling_iters = 0
    config.common.use_templates = False
    config.common.use_template_torsion_angles = False
    return config


def openfold():
    best = {}

    def timed(part, start):
        best[part] = min(best.get(part, 1e9), time.perf_counter() - start)
        return time.perf_counter()

    with open(fasta) as f:
        sequences, titles = parsers.parse_fasta(f.read())
    for _ in range(3):
        begin = now = time.perf_counter()
        texts = {name: read(name) for name in files()}
        now = timed("read and unpack", now)
        msas = [parsers.parse_stockholm(t) if ".sto" in n else parsers.parse_a3m(t) for n, t in texts.items()]
        now = timed("parse", now)
        raw = data_pipeline.make_msa_features(msas)
        raw.update(data_pipeline.make_sequence_features(sequences[0], titles[0], len(sequences[0])))
        now = timed("merge, raw features", now)
        timed("whole, to raw features", begin)
        processed = feature_pipeline.np_example_to_features(raw, slice_config(), "predict")
        timed("slice", now)
        timed("whole, to one slice", begin)
    return best, raw["msa"].shape, processed["msa_feat"].shape, processed["extra_msa"].shape


def fastfold():
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "times.json")
        subprocess.run([program, "bench", "--featurisation", fasta, "--alignments", folder, "--preset", preset,
                        "--repeat", "10", "--threads", threads, "--json", out],
                       check=True, stdout=subprocess.DEVNULL)
        with open(out) as f:
            return json.load(f)[0]


ours = fastfold()
theirs, *shapes = openfold()
print(f"OpenFold's rows and residues {shapes[0]}, ours ({ours['n_seq']}, {ours['n_res']}); "
      f"slices {shapes[1]} and {shapes[2]}; {threads} threads; {preset}")
ours["seconds"]["merge, raw features"] = ours["seconds"]["merge"] + ours["seconds"]["raw features"]
for part, seconds in theirs.items():
    mine = ours["seconds"][part]
    print(f"{part:24} OpenFold {seconds * 1e3:9.1f} ms   fastfold {mine * 1e3:7.2f} ms   {seconds / mine:6.1f} times")
