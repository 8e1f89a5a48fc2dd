#!/usr/bin/env python3
"""Training samples by fastfold's loader and by OpenFold's data pipeline, one after the other on the same chains:
samples a second of one core, memory, ratio.

usage: PYTHONPATH=OPENFOLD_SOURCE python compare_loader.py FASTFOLD CHAINS_DIR ROWS.a3m[.gz] [CHAINS [ROWS [SAMPLES]]]

CHAINS_DIR holds single chains as *.pdb.gz. Each of the first CHAINS (200) gets an alignment of ROWS (5,000) rows, made of the
rows of ROWS.a3m, cut or repeated to its length. OpenFold makes SAMPLES (8) samples of its preset initial_training from these
files, as its training set does; fastfold makes 50 times as many by its recipe of that name, from shards. Both: crop 256, 128
clusters, 1,024 extra rows, no templates, processor time of the whole process. OpenFold makes all four slices of three recycles
for each sample, fastfold those of the recycles that were drawn (2.5 on average): the ratio is that of four slices.
"""
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

program, chains_dir, rows_file = sys.argv[1:4]
n_chains, n_rows, n_samples = [int(x) for x in sys.argv[4:7]] + [200, 5000, 8][len(sys.argv[4:7]):]
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from openfold.config import model_config
from openfold.data import data_pipeline, feature_pipeline
from openfold.np import protein, residue_constants

torch.set_num_threads(1)


def text_of(path):
    with (gzip.open(path, "rt") if path.endswith(".gz") else open(path)) as f:
        return f.read()


def donor_rows():
    """The aligned rows, without what was inserted into them."""
    rows = "".join("\n" + line + "\n" if line.startswith(">") else line.strip() for line in text_of(rows_file).splitlines()).split("\n")
    rows = ["".join(c for c in row if not c.islower()) for row in rows if row and not row.startswith(">")]
    return rows[1:]


def write_inputs(folder):
    donors, draw, names = donor_rows(), random.Random(1), []
    os.makedirs(f"{folder}/chains")
    for file in sorted(f for f in os.listdir(chains_dir) if f.endswith(".pdb.gz"))[:n_chains]:
        text, name = text_of(os.path.join(chains_dir, file)), file[: -len(".pdb.gz")]
        chain = next(line[21] for line in text.splitlines() if line.startswith("ATOM"))
        aatype = protein.from_pdb_string(text, chain).aatype
        query = "".join(residue_constants.restypes_with_x[a] for a in aatype)
        with open(f"{folder}/chains/{name}.pdb", "w") as f:
            f.write(text)
        os.makedirs(f"{folder}/alignments/{name}")
        with open(f"{folder}/alignments/{name}/bfd_uniclust_hits.a3m", "w") as f:
            f.write(f">query\n{query}\n")
            for r in range(1, n_rows):
                row = draw.choice(donors)
                start = draw.randrange(len(row))
                row = (row[start:] + row * (len(query) // len(row) + 1))[: len(query)]
                f.write(f">row_{r}\n{row}\n")
        names.append((name, chain, len(query)))
    return names


def processor(who=resource.RUSAGE_SELF):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def openfold(folder, names):
    config = model_config("initial_training", train=True).data
    config.common.use_templates = config.common.use_template_torsion_angles = False
    pipeline, features = data_pipeline.DataPipeline(template_featurizer=None), feature_pipeline.FeaturePipeline(config)
    draw, times = random.Random(2), []
    for k in range(n_samples + 1):
        name, chain, _ = draw.choice(names)
        begin, wall = processor(), time.perf_counter()
        data = pipeline.process_pdb(f"{folder}/chains/{name}.pdb", f"{folder}/alignments/{name}", is_distillation=False, chain_id=chain)
        middle = processor()
        sample = features.process_features(data, "train")
        times.append((middle - begin, processor() - middle, time.perf_counter() - wall))
    shape = tuple(sample["msa_feat"].shape)
    return [sum(t[i] for t in times[1:]) / n_samples for i in range(3)], data["msa"].shape, shape  # the first warms up


def fastfold(folder):
    shards, out = f"{folder}/shards", f"{folder}/times.json"
    subprocess.run([program, "prepare", "build", f"{folder}/chains", "--alignments", f"{folder}/alignments", "-o", shards, "-q"], check=True)
    before = processor(resource.RUSAGE_CHILDREN)
    subprocess.run([program, "bench", "--loader", shards, "--samples", str(50 * n_samples), "--threads", "2", "--json", out], check=True)
    with open(out) as f:
        times = json.load(f)
    times["processor"] = processor(resource.RUSAGE_CHILDREN) - before
    return times, sum(os.path.getsize(os.path.join(shards, s)) for s in os.listdir(shards))


with tempfile.TemporaryDirectory() as folder:
    names = write_inputs(folder)
    ours, bytes_ = fastfold(folder)
    theirs, shape, feat = openfold(folder, names)
slice_, n = ours["processor"] / ours["slices"], sum(length for _, _, length in names) / len(names)
both = theirs[0] + theirs[1]
print(f"{len(names)} chains of {n:.0f} residues, {n_rows} rows each (OpenFold kept {shape[0]}), shards of {bytes_ / 2**20:.0f} MiB; "
      f"OpenFold's last msa_feat {feat}")
print(f"fastfold  {slice_ * 4e3:8.1f} ms of one core for four slices, {1 / (4 * slice_):8.1f} a second; "
      f"{ours['samples'] / ours['processor']:.1f} samples a second of {ours['slices'] / ours['samples']:.2f} slices; "
      f"memory at most {ours['peak_rss_bytes'] / 2**20:.0f} MiB, 2 threads")
print(f"OpenFold  {both * 1e3:8.1f} ms ({theirs[0] * 1e3:.0f} to read and parse, {theirs[1] * 1e3:.0f} to make the features), "
      f"{1 / both:8.2f} a second; memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")
print(f"ratio {both / (4 * slice_):.1f}; of the features alone {theirs[1] / (4 * slice_):.1f}")
