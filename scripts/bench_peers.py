#!/usr/bin/env python3
"""fastfold beside its peers on one GPU, in one run: a table of ratios, and JSON.

usage: scripts/bench_peers.py [--program build/release/fastfold] [--peers DIR] [--budget-seconds 540]
                              [--only REGEX] [--peer REGEX] [--json peers.json] [--scale N]

Ours are the rows of `fastfold bench`. The peers are the same modules written in plain PyTorch by AlphaFold's formulas
around SDPA, cuDNN's and flex attention, eager, compiled and as CUDA graphs; where cuequivariance_ops_torch can be
imported, its kernels within them; and with --peers, a folder that holds the packages `openfold`, `fastfold` and `alphafold`
or some of them, OpenFold's own modules and model (it needs ml_collections and dm-tree too), and the block of FastFold (with
einops) and of AlphaFold (with jax and dm-haiku). All in bf16, with the same inputs' sizes, which take turns so that no
cache holds them; batches of calls between two events, warm, the median, of modules the shorter of calls one by one and as
one CUDA graph, ours and theirs. Masks are all ones; the plain modules leave them out.

A peer that fails, runs out of memory, hangs or crashes costs its own entry: peers run in a process that is started again.
Compilations are done beforehand, several at a time, and nothing is timed meanwhile. What the budget leaves no time for is
said to be missing. The training step's peers have a stand-in for the losses; "trunk" is the two stacks alone, compiled,
all blocks with one block's weights: less than the model, in the peer's favour.

--scale divides all sizes, to try the script out; without a GPU it runs on the CPU.
"""
import argparse
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import bench_peers_worker

START = time.time()


# ---- What is compared

def table(scale):
    """(name, shape, backward, ours: arguments of fastfold bench and the row's name, peers, seconds that a peer may take)"""
    size = lambda n: max(4, n // scale)
    rows = []

    def add(name, row, S, N, backward, peers, arguments=(), shape=None, seconds=8):
        S, N = size(S), size(N)
        rows.append(dict(name=name, row=row, S=S, N=N, backward=backward, peers=peers, seconds=seconds,
                         shape=shape or (f"{S} x {N}" if S > 4 else f"{N}"),
                         arguments=["--n-seq", str(S), "--n-res", str(N), *arguments] + (["--training"] if backward else [])))

    alone = ["--modules-only", "--blocks", "1", "--n-extra", "1", "--graphs"]
    whole = ["--preset", "model_3_ptm", "--n-extra", str(size(1024))]
    short, long = ((128, 256), (512, 384)), ((128, 512), (128, 1024), (128, 2048))
    both = [(S, N, backward) for backward in (0, 1) for S, N in short]
    for S, N, backward in both + [(S, N, 0) for S, N in long]:
        add("block", "block", S, N, backward, ["cueq compiled", "flex compiled", "cueq", "openfold"]
            + ["sdpa compiled", "openfold compiled"] * (N < 512) + ["fastfold", "jax"], alone, seconds=40 if backward else 25)
    add("optimizer", "optimizer", 128, 256, 1, ["fused", "foreach"], whole, "93 M", seconds=15)
    add("training step", "training step", 128, 256, 1, ["trunk", "openfold"], whole, seconds=60)
    # The peers compute their blocks again in the backward; ours above keeps what memory has room for.
    add("training step", "training step", 128, 256, 1, ["trunk"], [*whole, "--recompute", "blocks"],
        f"{size(128)} x {size(256)}, recomputed", seconds=60)
    for N in (256, 512):
        add("model", "whole pass", 512, N, 0, ["openfold", "openfold cueq", "trunk"], whole, seconds=30)
    for S, N, backward in both + [(S, N, 0) for S, N in long[:2]]:
        few = ["openfold compiled"] * (N < 512)
        add("triangle multiplication", "triangle multiplication out", S, N, backward,
            ["cueq", "plain compiled", "openfold", *few], alone, f"{size(N)}")
        add("triangle attention", "triangle attention start", S, N, backward,
            ["cueq", "flex compiled", "sdpa compiled", "openfold", *few], alone, f"{size(N)}")
    for S, N, backward in both + [(S, N, 0) for S, N in long]:
        add("triangle attention core", "triangle attention core", S, N, backward, ["flex compiled", "cueq", "sdpa", "cudnn"], alone,
            f"{size(N)}")
    for S, N, backward in both:
        add("row attention", "row attention", S, N, backward, ["cueq", "flex compiled", "sdpa compiled", "openfold"], alone)
        add("outer product mean", "outer product mean", S, N, backward, ["plain compiled", "openfold"], alone)
    for backward in (0, 1):
        add("layer norm", "layer norm", 512, 384, backward, ["plain", "plain compiled"], alone, f"{size(384) ** 2} x 128")
    add("model", "whole pass", 512, 1024, 0, ["openfold cueq", "trunk", "openfold"], whole, seconds=60)
    return rows


def jobs_of(rows):
    """JAX's last: it keeps the memory that it had."""
    jobs = [dict(row=i, peer=p, seconds=r["seconds"]) for i, r in enumerate(rows) for p in r["peers"]]
    return sorted(jobs, key=lambda job: job["peer"] == "jax")


# ---- Ours

def ours(args, rows, deadline):
    """{row index: entry} of fastfold bench, one run of it for all rows with the same arguments."""
    device = args.device
    groups, found = {}, {}
    for i, r in enumerate(rows):
        groups.setdefault(tuple(r["arguments"]), []).append(i)
    for arguments, members in groups.items():
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            names = sorted({rows[i]["row"] for i in members})
            command = [args.program, "bench", "--device", device, "--precision", "bf16", "--repeat", "7", *arguments,
                       "--rows", ",".join(names), "--json", out.name]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, deadline - time.time()))
                error = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1] if done.returncode else ""
            except subprocess.TimeoutExpired:
                error = "the budget was used up"
            except OSError as e:
                sys.exit(f"bench_peers: {args.program}: {e}; build it, or name it with --program")
            result = {} if error else json.load(open(out.name))
        by_name = {row["name"]: row for row in result.get("rows", [])}
        for i in members:
            row = by_name.get(rows[i]["row"])
            found[i] = {"error": error or f"bench has no row '{rows[i]['row']}'"} if row is None else {
                "ms": min(row["ms"] + row.get("backward_ms", 0), row.get("graph_ms", math.inf)), "floor_ms": row["floor_ms"],
                "mib": row["peak_mib" if whole_row(rows[i]) else "temporary_mib"],
                "ceiling_tflops": result["ceiling_gflops"] / 1e3, "copy_tb_per_s": result["copy_tb_per_s"]}
    return found


def whole_row(row):
    """Rows whose memory is everything's, not what a call adds to its inputs and weights."""
    return row["name"] in ("model", "training step")


# ---- The parent

class Worker:
    """A process that takes jobs; a thread gathers what it says, since a pipe's buffer hides lines from select."""

    def __init__(self, args, prewarm):
        command = [sys.executable, os.path.abspath(__file__), "--worker", "--scale", str(args.scale), "--device", args.device]
        command += ["--peers", args.peers] if args.peers else []
        command += ["--prewarm"] if prewarm else []
        with tempfile.NamedTemporaryFile("w", dir=args.scratch, suffix=".log", delete=False) as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                                            start_new_session=True)
        self.said = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                self.said.put(json.loads(line))
        self.said.put(None)

    def ask(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def entry(self, seconds):
        """The next that it says; None where it died or took longer."""
        try:
            return self.said.get(timeout=max(0, seconds))
        except queue.Empty:
            return None

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def run_jobs(args, jobs, deadline, results, prewarm=False):
    """The jobs in turn, each by a worker that lives; into results[(row, peer)]."""
    worker = None
    for job in jobs:
        key = (job["row"], job["peer"])
        left = deadline - time.time()
        if left < 0.3 * job["seconds"]:
            results.setdefault(key, {"error": "no time left"})
            continue
        worker = worker or Worker(args, prewarm)
        try:
            worker.ask(job)
            entry = worker.entry(120)  # PyTorch is imported
            entry = entry and worker.entry(min(left, 3 * job["seconds"] + 30))
        except BrokenPipeError:
            entry = None
        if entry:
            results[key] = entry["result"]
        died = worker.process.poll()
        if not entry or died is not None or "CUDA error" in str(entry):
            results.setdefault(key, {"error": "took too long" if died is None else f"crashed ({died})"})
            worker.stop()
            worker = None
    if worker:
        worker.stop()


def report(rows, mine, theirs):
    """The table, and the same as entries."""
    entries = []
    print(f"{'':26}{'shape':>13} {'pass':>4} {'ours ms':>9} {'best peer':>9} {'ratio':>6}  {'which':22}{'floor ms':>9} {'share':>6} "
          f"{'our MiB':>9} {'peer MiB':>9} {'least':>9}")
    for i, row in enumerate(rows):
        us = mine.get(i, {"error": "no time left"})
        peers = {p: theirs.get((i, p), {"error": "not run"}) for p in row["peers"]}
        timed = {p: r for p, r in peers.items() if "ms" in r}
        best = min(timed, key=lambda p: timed[p]["ms"]) if timed else None
        entry = dict(name=row["name"], shape=row["shape"], backward=bool(row["backward"]), ours=us, peers=peers, best=best)
        which, peer_ms, peer_mib = "no peer ran", math.nan, math.nan
        if best:
            which = best + (" graph" if timed[best].get("by") else "")
            peer_ms, peer_mib = timed[best]["ms"], timed[best]["mib"]
        least = min((r["mib"] for r in timed.values()), default=math.nan)
        if "ms" in us and best:
            entry["ratio"] = peer_ms / us["ms"]
        entries.append(entry)
        number = lambda x, width, digits: f"{x:{width}.{digits}f}" if x == x else f"{'-':>{width}}"
        print(f"{row['name']:26}{row['shape']:>13} {'f+b' if row['backward'] else 'f':>4} {number(us.get('ms', math.nan), 9, 3)} "
              f"{number(peer_ms, 9, 3)} {number(entry.get('ratio', math.nan), 6, 2)}  {which:22}"
              f"{number(us.get('floor_ms', math.nan), 9, 3)} {number(100 * us['floor_ms'] / us['ms'] if 'ms' in us else math.nan, 5, 0)}% "
              f"{number(us.get('mib', math.nan), 9, 0)} {number(peer_mib, 9, 0)} {number(least, 9, 0)}")
        if "error" in us:
            print(f"    ours: {us['error']}")
    errors = {}
    for e in entries:
        for peer, r in e["peers"].items():
            if "error" in r:
                errors.setdefault(f"{peer}: {r['error']}", []).append(f"{e['name']} {e['shape']}{' f+b' if e['backward'] else ''}")
    for text, where in sorted(errors.items()):
        print(f"no time of {text} [{'; '.join(where)}]")
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/fastfold")
    parser.add_argument("--peers", help="folder that holds OpenFold's package `openfold`")
    parser.add_argument("--budget-seconds", type=float, default=540)
    parser.add_argument("--only", default="", help="rows whose 'name shape pass' this regular expression finds")
    parser.add_argument("--peer", default="", help="only the peers whose names this regular expression finds")
    parser.add_argument("--json")
    parser.add_argument("--scale", type=int, default=1, help="divides all sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prewarm", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = table(args.scale)
    for row in rows:
        row["peers"] = [p for p in row["peers"] if re.search(args.peer, p)]
    if args.worker:
        return bench_peers_worker.work(args, rows)
    import torch  # its absence is told at once
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [i for i, r in enumerate(rows) if re.search(args.only, f"{r['name']} {r['shape']} {'f+b' if r['backward'] else 'f'}")]
    jobs = [j for j in jobs_of(rows) if j["row"] in set(chosen)]
    deadline, results = START + args.budget_seconds - 5, {}
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as args.scratch:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(args.scratch, "compiled"))
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(args.scratch, "compiled_by_xla"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        logs = args.scratch = os.path.join(args.scratch, "logs")
        os.makedirs(logs)
        compiled = [j for j in jobs if "compiled" in j["peer"] or j["peer"] in ("trunk", "jax")]
        many = max(1, min(8, (os.cpu_count() or 2) // 2))
        if compiled and args.device == "cuda":
            until = min(deadline, START + 0.35 * args.budget_seconds)
            threads = [threading.Thread(target=run_jobs, args=(args, compiled[k::many], until, {}, True)) for k in range(many)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            print(f"bench_peers: compiled for {time.time() - START:.0f} s", file=sys.stderr)
        mine = ours(args, [rows[i] for i in chosen], deadline)
        mine = {chosen[k]: v for k, v in mine.items()}
        print(f"bench_peers: ours after {time.time() - START:.0f} s", file=sys.stderr)
        run_jobs(args, jobs, deadline, results)
    rates = next((m for m in mine.values() if "ceiling_tflops" in m), {})
    print(f"{card}, PyTorch {torch.__version__}, bf16; matrix products {rates.get('ceiling_tflops', 0):.0f} TFLOP/s, copies "
          f"{rates.get('copy_tb_per_s', 0):.2f} TB/s; ratio: times faster than the best peer; {time.time() - START:.0f} s")
    entries = report([rows[i] for i in chosen], {k: mine.get(i, {}) or {"error": "not run"} for k, i in enumerate(chosen)},
                     {(chosen.index(i), p): r for (i, p), r in results.items()})
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"card": card, "torch": torch.__version__, "rows": entries}, f, indent=1)


if __name__ == "__main__":
    main()
