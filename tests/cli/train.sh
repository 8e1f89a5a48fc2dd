# train: runs killed, stopped and resumed give the bits of one that was not; what is refused, and how.
source "$(dirname "$0")/common.bash"
examples=$(dirname "$(dirname "$data")")/examples/training

mkdir few
cp "$examples"/chains/{5PTI_A,pdb1ubi_A,pdb1ejg_A}.pdb.gz few
expect 0 "3 chains in 1 shard" prepare build few --single-sequence -o shards
cat > small.yaml << 'EOF'
recipe: demo
data:
  train: {shards: [shards], crop_size: 24, max_msa_clusters: 4, max_extra_msa: 4}
model:
  c_m: 16
  c_z: 16
  c_e: 8
  c_s: 16
  num_recycle: 1
  evoformer_stack: {no_blocks: 1, no_heads_msa: 2, msa_dropout: 0.15, pair_dropout: 0.25}
  extra_msa: {no_blocks: 1}
  structure_module: {c: 16, no_blocks: 2, no_heads_ipa: 2}
run: {global_batch: 2, max_steps: 20, checkpoint_every: 10}
EOF
train() { expect "$1" "$2" train --config small.yaml -o run --threads 2 "${@:3}"; }
# as_whole WHAT: the run has the checkpoint and the losses of the one that nothing stopped.
as_whole() {
  cmp run/step_00000020.h5 whole/step_00000020.h5 || problem "$1: other bits than without"
  cmp <(losses run) <(losses whole) || problem "$1: other losses than without"
}
losses() { grep -o '"kind":"train","step":[0-9]*,"loss/total":[^,]*' "$1/metrics.jsonl"; }

train 0 "20 steps, 40 samples"
mv run whole
[ "$(losses whole | wc -l)" -eq 20 ] || problem "not 20 losses: $(losses whole)"
for word in loss/fape optim/clip_rate run/samples_per_s run/tflops run/share_of_peak run/loader_stall; do
  grep -q "\"$word\":[0-9]" whole/metrics.jsonl || problem "no $word: $(tail -1 whole/metrics.jsonl)"
done

# Killed in the middle of writing a checkpoint: the temporary file is there, its name is not.
caught=0
for round in 1 2 3 4 5 6 7 8; do
  rm -rf run
  train 0 "10 steps" run.max_steps=10
  "$program" train --config small.yaml -o run --threads 2 --resume auto run.checkpoint_every=1 -q 2> err.txt & pid=$!
  until compgen -G 'run/.step_*.tmp' > /dev/null || ! kill -0 $pid 2> /dev/null; do :; done
  kill -9 $pid 2> /dev/null
  wait $pid 2> /dev/null
  compgen -G 'run/.step_*.tmp' > /dev/null && caught=1 && break
done
[ $caught -eq 1 ] || problem "no checkpoint was caught while it was written"
train 0 "resumed run/step_000000" --resume auto
compgen -G 'run/.*.tmp' > /dev/null && problem "a killed checkpoint was left: $(ls -A run)"
as_whole "killed while a checkpoint was written"

# The same with any number of loader threads, stopped by a signal or not.
for loaders in 1 2 4; do
  rm -rf run
  "$program" train --config small.yaml -o run --threads 2 run.loader_threads=$loaders -q 2> err.txt & pid=$!
  until [ "$(wc -l 2> /dev/null < run/metrics.jsonl)" -ge 3 ] 2> /dev/null || ! kill -0 $pid 2> /dev/null; do sleep 0.02; done
  [ $loaders = 4 ] && signal=TERM || signal=USR1
  kill -$signal $pid || problem "$signal: the run had ended: $(cat err.txt)"
  wait $pid
  [ $? -eq 75 ] || problem "$signal: not exit 75: $(cat err.txt)"
  grep -q "stopping" err.txt || problem "$signal: $(cat err.txt)"
  train 0 "20 steps" run.loader_threads=$loaders --resume auto
  as_whole "$loaders loader threads, $signal"
done

# Two trainers, other models, other files.
train 2 "run: holds a run already; go on with --resume auto"
"$program" train --config small.yaml -o busy --threads 1 run.max_steps=100000 -q 2> err.txt & pid=$!
until [ -s busy/metrics.jsonl ] || ! kill -0 $pid 2> /dev/null; do sleep 0.02; done
expect 2 "busy is being written by another fastfold (process $pid" train --config small.yaml -o busy --resume auto
kill -9 $pid
wait $pid 2> /dev/null
expect 3 "run/step_00000020.h5: is a checkpoint of another model" train --config small.yaml -o other --resume run/step_00000020.h5 model.c_z=32
grep -qF "model.c_z: 16, 32" err.txt && problem "one line was expected" || true

finish
