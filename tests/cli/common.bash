# Shared by the scripts of tests/cli: runs the program and checks how it ends.
set -u
program=$(realpath "$1")
data=$(cd "$(dirname "${BASH_SOURCE[0]}")/../data" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

problem() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# expect CODE TEXT ARGS...: the program ends with CODE, one message that contains TEXT, on one line of
# standard error that begins with "fastfold: ". TEXT may be empty.
expect() {
  local code=$1 text=$2
  shift 2
  timeout 120 "$program" "$@" > out.txt 2> err.txt
  local got=$?
  [ "$got" -eq "$code" ] || problem "$*: exit $got, expected $code: $(cat err.txt)"
  if [ "$code" -ne 0 ]; then
    [ "$(wc -l < err.txt)" -eq 1 ] || problem "$*: not one line: $(cat err.txt)"
    grep -q '^fastfold: ' err.txt || problem "$*: no 'fastfold: ' message: $(cat err.txt)"
  fi
  if [ -n "$text" ]; then
    cat out.txt err.txt | grep -qF -- "$text" || problem "$*: does not say '$text': $(cat err.txt)"
  fi
}

# nothing_in FOLDER: no file was left there, temporary ones included.
nothing_in() {
  [ -z "$(find "$1" -type f 2> /dev/null)" ] || problem "left behind: $(find "$1" -type f)"
}

# example_shards CHAIN...: trains on these chains of examples/training, in the folder `shards`.
example_shards() {
  local examples chain
  examples=$(dirname "$(dirname "$data")")/examples/training/chains
  mkdir -p few
  for chain in "$@"; do cp "$examples/$chain.pdb.gz" few; done
  expect 0 "$# chains in 1 shard" prepare build few --single-sequence -o shards
}

# small_network RECYCLES: the model of a training configuration, one that takes no time.
small_network() {
  cat << END
model:
  c_m: 16
  c_z: 16
  c_e: 8
  c_s: 16
  num_recycle: $1
  evoformer_stack: {no_blocks: 1, no_heads_msa: 2, msa_dropout: 0.15, pair_dropout: 0.25}
  extra_msa: {no_blocks: 1}
  structure_module: {c: 16, no_blocks: 2, no_heads_ipa: 2}
END
}

finish() {
  [ "$failures" -eq 0 ] || exit 1
  echo "all as expected"
}
