#!/usr/bin/env python3
"""Runs the GPU tests under compute-sanitizer, each section of each test in a process of its own.

    scripts/sanitize_gpu.py build/release/test_cuda --tool racecheck --only 'outer product|modules'

One line for each: clean, what was reported and in which kernels, or that it did not end. Reports whose both ends are in
kernels of cuBLASLt's (nvjet, cutlass, cublas) are counted apart. Exit 1 where a test fails, does not end, or one of our
kernels is reported. Launches wait for each other: otherwise racecheck's queue of records fills the machine's memory. But
not where threads are ranks: so none of those tests ended.
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
import time
import xml.etree.ElementTree as xml

THEIRS = re.compile(r"nvjet|cutlass|cublas|splitK|gemm|gemv|dot_kernel|reduce_1Block|ncclDev", re.I)

RANKS = re.compile(r"ranks that share")


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


def tests(program, only, pool, cache):
    """(test, section or None) of each test whose name has `only`; `cache` is a file of what earlier runs told, or None."""
    names = subprocess.run([program, "--list-test-names-only"], capture_output=True, text=True).stdout.splitlines()
    names = [n for n in names if n.startswith("GPU:") and re.search(only, n)]
    known = json.load(open(cache)) if cache and os.path.exists(cache) else {}
    new = [n for n in names if n not in known]
    known.update(zip(new, pool.map(lambda n: sections(program, n), new)))
    if cache and new:
        with open(cache + ".new", "w") as f:
            json.dump(known, f, indent=1)
        os.replace(cache + ".new", cache)
    return [(n, s) for n in names for s in known[n]]


def clear_products(program):
    return os.path.join(os.path.dirname(os.path.abspath(program)), "libclear_products.so")


def check(program, tool, seconds, name, section):
    waits = [] if RANKS.search(name) else ["--force-blocking-launches"]
    command = ["compute-sanitizer", "--tool", tool, *waits, "--print-limit", "100000", program, filter_of(name)]
    command += ["-c", section] if section else []
    start = time.monotonic()
    environment = dict(os.environ, LD_PRELOAD=clear_products(program)) if tool == "initcheck" else None
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                           env=environment, start_new_session=True)
    ended = True
    try:
        text = run.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        text, ended = run.communicate()[0], False
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
    counts = re.findall(r"SUMMARY: (\d+)", text)
    if not counts and ended:
        ours["no summary"] += 1
    elif counts and (more := int(counts[-1]) - theirs - sum(ours.values())) > 0:
        ours["elsewhere"] += more
    passed = "All tests passed" in text
    verdict = ("did not end" if not ended else "FAILED" if not passed else "reported" if ours else "clean")
    print(f"{verdict} | {tool} | {name}{' | ' + section if section else ''} | {time.monotonic() - start:.0f} s"
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
    if options.tool == "initcheck" and not os.path.exists(clear_products(options.program)):
        sys.exit(f"sanitize_gpu: there is no {clear_products(options.program)}; build all (README.md)")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        verdicts = collections.Counter(pool.map(
            lambda test: check(options.program, options.tool, options.seconds, *test),
            tests(options.program, options.only, pool, options.sections)))
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "no such tests")
    sys.exit(set(verdicts) != {"clean"})


if __name__ == "__main__":
    main()
