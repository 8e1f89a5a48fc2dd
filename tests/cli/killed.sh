# predict, train and prepare, killed at every step that changes a file and run again: all files, and no
# others, are as a run that nothing stopped writes them.
source "$(dirname "$0")/common.bash"
killer=$(dirname "$program")/tests/libkill_at.so
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:verify_asan_link_order=0  # kill_at is loaded before the sanitizers

# everywhere WHAT: `run` is killed at its first step, then at its second, and so on until it comes to its
# end; each time `again` goes on, and `same` must have nothing to say. The folder `out` begins as `before`
# where there is one.
everywhere() {
  local n code
  for ((n = 1; ; n++)); do
    rm -rf out
    [ -d before ] && cp -r before out
    KILL_AT=$n LD_PRELOAD=$killer run > out.txt 2> err.txt
    code=$?
    [ $code -eq 0 ] && break
    [ $code -eq 137 ] || problem "$1, step $n: exit $code: $(cat err.txt)"
    again 2> err.txt || problem "$1, killed at step $n: $(cat err.txt)"
    same > differ.txt 2>&1
    [ ! -s differ.txt ] || problem "$1, killed at step $n: $(cat differ.txt)"
    [ $failures -lt 5 ] || break
  done
  [ $n -gt 8 ] || problem "$1: only $n steps"
  echo "$1: $n steps"
}

# Predictions: one over that of other settings, and two from nothing.
expect 0 "" init --preset demo --seed 1 --no-zeros -o params.npz
printf '>a\nMKTAYIAKQRQ\n>b\nMKTAYIAKQRG\n' > two.fasta
head -2 two.fasta > one.fasta
settings=(--params params.npz --msa-mode single_sequence --threads 1)
predict() { # predict OUT ARGS...
  "$program" predict $targets.fasta "${settings[@]}" --num-recycle 0 -q --layout $layout -o "$@"
}
run() { predict out; }
again() { predict out --skip-existing; }
same() {
  diff <(cd whole && find . | sort) <(cd out && find . | sort)
  for file in $(cd whole && find . -type f); do
    case $file in
      *timings.json | *run.json | *report.html | *complete.json | *.done.txt) ;; # tell when, and how long
      *) cmp whole/$file out/$file ;;
    esac
  done
}
targets=one layout=colabfold
predict whole || problem "the uninterrupted prediction failed"
predict before --num-seeds 2 || problem "the prediction before failed"
everywhere "predict over other files"
rm -rf whole before
targets=two layout=fastfold
predict whole || problem "the uninterrupted batch failed"
everywhere "predict"

# Nothing is left to do, and the lock and the list of files of a run killed after its last file go; a
# file that was cut off afterwards is noticed and made again.
echo "process 1 on nowhere" > out/.a.lock
"$program" predict two.fasta "${settings[@]}" --num-recycle 0 -o out --skip-existing 2> err.txt ||
  problem "nothing to do: $(cat err.txt)"
[ ! -e out/.a.lock ] || problem "a killed run's lock was left"
grep -q "2 of 2 targets were left as they are" err.txt || problem "not all were skipped: $(cat err.txt)"
truncate -s 100 out/b/ranked_000.pdb
predict out --skip-existing || problem "the repair failed"
cmp -s whole/b/ranked_000.pdb out/b/ranked_000.pdb || problem "the damaged file was not made again"

# Other settings: made again.
"$program" predict two.fasta "${settings[@]}" --num-recycle 1 -o out --skip-existing 2> err.txt ||
  problem "other settings: $(cat err.txt)"
grep -q "a: is there, made from other inputs or settings" err.txt || problem "other settings were not noticed: $(cat err.txt)"
cmp -s whole/b/ranked_000.pdb out/b/ranked_000.pdb && problem "the old structure was left"

# Two shards and the list of what was rejected.
rm -rf whole
mkdir structures
cp "$data/evaluate/1BD2_B.pdb.gz" "$data/evaluate/bp_4CUP.cif.gz" structures
prepare() { "$program" prepare build structures --single-sequence --shard-size 1 --jobs 1 -q -o "$@"; }
prepare whole || problem "the uninterrupted build failed"
run() { prepare out; }
again() { prepare out; }
same() { diff -r whole out; }
everywhere prepare

# A training run with checkpoints, the best among them; TensorBoard's files are one a run.
rm -rf whole
example_shards 5PTI_A pdb1ubi_A
cat - <(small_network 0) > small.yaml << 'EOF'
recipe: demo
data:
  train: {shards: [shards], crop_size: 16, max_msa_clusters: 4, max_extra_msa: 4}
  validation: {shards: [shards]}
run: {global_batch: 1, max_steps: 2, checkpoint_every: 1, val_every: 1}
EOF
train() { "$program" train --config small.yaml --threads 1 -q -o "$@"; }
train whole || problem "the uninterrupted training failed"
run() { train out; }
again() { train out --resume auto; }
losses() { grep -o '"kind":"train","step":[0-9]*,"loss/total":[^,]*' "$1/metrics.jsonl"; }
same() {
  diff <(ls -A whole | grep -v tfevents) <(ls -A out | grep -v tfevents)
  for file in whole/*.h5; do cmp $file out/${file#whole/}; done
  diff <(losses whole) <(losses out)
}
everywhere train

finish
