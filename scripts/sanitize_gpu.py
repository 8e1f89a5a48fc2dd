#!/usr/bin/env python3
"""Runs the GPU tests under compute-sanitizer, each section of each test in a process of its own.

    scripts/sanitize_gpu.py build/release/test_cuda --tool racecheck --only 'outer product|modules'

One line for each: clean, what was reported and in which kernels, or that it did not end. Reports whose both ends are in
kernels of cuBLASLt's (nvjet, cutlass, cublas) are counted apart; racecheck looks at our kernels alone, or at all where
that ends in the tool's own error: a few of cuBLASLt's fail if it leaves them out. Exit 1 where a test fails, does not end,
or one of our kernels is reported.
Launches wait for each other: otherwise racecheck's queue of records fills the machine's memory. Threads that are ranks
would then wait for each other, too: those that only exchange do not wait, and the gradients of two ranks are those of
`fastfold parity` in two processes, the program beside test_cuda, in time and late.
For initcheck what cuBLASLt's products will write is cleared first (tests/clear_products.cpp says why).
"""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml

THEIRS = re.compile(r"nvjet|cutlass|cublas|splitK|gemm|gemv|dot_kernel|reduce_1Block|ncclDev", re.I)

EXCHANGE = re.compile(r"^GPU: ranks that share it exchange")
IN_PROCESSES = re.compile(r"^GPU: gradients of two ranks that share it")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def filter_of(name):
    """Catch's: a comma would begin another name."""
    return name.replace(",", "\\,")


def sections(program, name):
    """Of a test, or [None] of one without; a run of it tells them."""
    run = subprocess.run([program, filter_of(name), "-r", "xml"], capture_output=True, text=True)
    start = run.stdout.find("<?xml")
    if run.returncode or start < 0 or "SKIPPED" in run.stdout:
        sys.exit(f"sanitize_gpu: '{name}' fails or is skipped without the sanitizer:\n{run.stdout[-2000:]}{run.stderr}")
    return list(dict.fromkeys(s.get("name") for s in xml.fromstring(run.stdout[start:]).findall(".//TestCase/Section"))) or [None]


def tests(program, only, pool, cache, scratch):
    """(what it is called, its command, processes, whether launches wait, variables) of each section of the tests whose
    names have `only`; `cache` is a file of what earlier runs told, or None."""
    names = subprocess.run([program, "--list-test-names-only"], capture_output=True, text=True).stdout.splitlines()
    names = [n for n in names if n.startswith("GPU:") and re.search(only, n)]
    known = json.load(open(cache)) if cache and os.path.exists(cache) else {}
    new = [n for n in names if n not in known and not IN_PROCESSES.search(n)]
    known.update(zip(new, pool.map(lambda n: sections(program, n), new)))
    if cache and new:
        with open(cache + ".new", "w") as f:
            json.dump(known, f, indent=1)
        os.replace(cache + ".new", cache)
    for name in names:
        if IN_PROCESSES.search(name):
            yield from two_processes(program, name, scratch)
            continue
        for section in known[name]:
            yield (f"{name} | {section}" if section else name, [program, filter_of(name)] + (["-c", section] if section else []),
                   1, not EXCHANGE.search(name), {})


def two_processes(program, name, scratch):
    """Gradients by two ranks of one GPU that are processes."""
    data = os.path.join(ROOT, "tests", "data")
    for fixture in ("tiny", "tiny_padded"):
        at = os.path.join(data, fixture)
        for late, spin in (("", "0"), (", late", "200")):
            yield (f"{name} | {fixture}{late}",
                   [beside(program, "fastfold"), "parity", "--device", "cuda", "-q", "--dap", "2", "--num-recycle", "1",
                    "--config", f"{at}/config.json", "--params", f"{data}/tiny/params.npz", "--batch", f"{at}/batch.npz",
                    "--labels", f"{at}/labels.npz", "--gradients", os.path.join(scratch, f"{fixture}{spin}.npz")],
                   2, True, {"FASTFOLD_COMM": "host", "FASTFOLD_SPIN_US": spin})


def beside(program, name):
    return os.path.join(os.path.dirname(os.path.abspath(program)), name)


def ran(command, seconds, variables):
    """(whether it ended in time, its exit status, what it said)."""
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                           env=dict(os.environ, **variables), start_new_session=True)
    try:
        text = run.communicate(timeout=seconds)[0]
        return True, run.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGTERM)  # so that mpirun ends its processes
    try:
        text = run.communicate(timeout=10)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        text = run.communicate()[0]
    return False, run.returncode, text


def check(clears, tool, seconds, name, command, processes, waits, variables):
    start = time.monotonic()
    for of_ours in [True, False] if tool == "racecheck" else [False]:
        whole = ["compute-sanitizer", "--tool", tool, "--print-limit", "100000", *["--force-blocking-launches"] * waits,
                 *["--kernel-name", "kernel_substring=2ff4cuda"] * of_ours, *command]
        if tool == "initcheck":
            whole = ["env", f"LD_PRELOAD={clears}", *whole]
        if processes > 1:
            whole = [os.path.join(ROOT, "tests", "mpirun"), str(processes), *whole]
        ended, status, text = ran(whole, seconds, variables)
        if "Internal Sanitizer Error" not in text:
            break
    ours, theirs = collections.Counter(), 0
    # Reports end with an empty line.
    for report in re.split(r"\n=========\s*\n", text):
        kernels = re.findall(r" at (\S.*?)\+0x", report)  # demangled: with spaces
        if kernels and all(THEIRS.search(k) for k in kernels):
            theirs += 1
        elif kernels:
            ours[kernels[0]] += 1
        elif re.search(r"Internal Sanitizer Error", report):
            ours["the sanitizer itself"] += 1
    # What the tool counts and is no report of a kernel's: errors of the API. No count: the tool broke off.
    counts = [int(n) for n in re.findall(r"SUMMARY: (\d+)", text)]
    if len(counts) < processes and ended:
        ours["no summary"] += 1
    elif (more := sum(counts) - theirs - sum(ours.values())) > 0:
        ours["elsewhere"] += more
    # A section that is not there, or a test that is skipped, ends well and passes nothing.
    passed = status == 0 and (processes > 1 or "All tests passed" in text)
    verdict = ("did not end" if not ended else "FAILED" if not passed else "reported" if ours else "clean")
    print(f"{verdict} | {tool} | {name} | {time.monotonic() - start:.0f} s"
          f"{f' | {theirs} in libraries' if theirs else ''}{f' | {dict(ours)}' if ours else ''}", flush=True)
    if verdict == "FAILED":  # what the test says, without the tool's lines
        print("\n".join([line for line in text.splitlines() if line.strip() and not line.startswith("=====")][-20:]), flush=True)
    return verdict


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="test_cuda")
    parser.add_argument("--tool", choices=["memcheck", "racecheck", "initcheck", "synccheck"], default="racecheck")
    parser.add_argument("--only", default="", metavar="REGEX", help="tests whose names match")
    parser.add_argument("--jobs", type=int, default=8, help="processes side by side (%(default)s)")
    parser.add_argument("--seconds", type=int, default=600, help="of each process at most (%(default)s)")
    parser.add_argument("--sections", metavar="FILE", help="JSON: the tests' sections, read where it is there and added to;"
                        " without it each test is run once without the sanitizer first")
    options = parser.parse_args()
    for program, from_where in (("compute-sanitizer", "the CUDA toolkit has it in bin/"), (options.program, "build it (README.md)")):
        if not shutil.which(program):
            sys.exit(f"sanitize_gpu: there is no program {program}; {from_where}")
    clears = beside(options.program, "libclear_products.so")
    if options.tool == "initcheck" and not os.path.exists(clears):
        sys.exit(f"sanitize_gpu: there is no {clears}; build all (README.md)")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool, tempfile.TemporaryDirectory() as scratch:
        verdicts = collections.Counter(pool.map(
            lambda test: check(clears, options.tool, options.seconds, *test),
            tests(options.program, options.only, pool, options.sections, scratch)))
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "no such tests")
    sys.exit(set(verdicts) != {"clean"})


if __name__ == "__main__":
    main()
