# train: runs killed, stopped and resumed give the bits of one that was not; what is refused, and how.
source "$(dirname "$0")/common.bash"

example_shards 5PTI_A pdb1ubi_A pdb1ejg_A
cat - <(small_network 1) > small.yaml << 'EOF'
recipe: demo
data:
  train: {shards: [shards], crop_size: 24, max_msa_clusters: 4, max_extra_msa: 4}
run: {global_batch: 2, max_steps: 20, checkpoint_every: 10}
EOF
# says CODE TEXT ARGS...: as expect, where the message may have several lines.
says() {
  timeout 120 "$program" "${@:3}" > out.txt 2> err.txt
  local got=$?
  [ $got -eq "$1" ] || problem "${*:3}: exit $got, expected $1: $(cat err.txt)"
  grep -qF -- "$2" err.txt || problem "${*:3}: does not say '$2': $(cat err.txt)"
}
train() { expect "$1" "$2" train --config small.yaml -o run --threads 1 "${@:3}"; }
# as_whole WHAT: the run has the checkpoint and the losses of the one that nothing stopped.
as_whole() {
  cmp run/step_00000020.h5 whole/step_00000020.h5 || problem "$1: other bits than without"
  cmp <(losses run) <(losses whole) || problem "$1: other losses than without"
}
losses() { grep -o '"kind":"train","step":[0-9]*,"loss/total":[^,]*' "$1/metrics.jsonl"; }

train 0 "20 steps, 40 samples"
mv run whole
[ "$(losses whole | wc -l)" -eq 20 ] || problem "not 20 losses: $(losses whole)"
for word in loss/fape optim/clip_rate run/tensor_peak run/samples_per_s run/tflops run/share_of_peak run/loader_stall; do
  grep -q "\"$word\":[0-9]" whole/metrics.jsonl || problem "no $word: $(tail -1 whole/metrics.jsonl)"
done

# Killed in the middle of writing a checkpoint: the temporary file is there, its name is not.
caught=0
for round in 1 2 3 4 5 6 7 8; do
  rm -rf run
  train 0 "10 steps" run.max_steps=10
  "$program" train --config small.yaml -o run --threads 1 --resume auto run.checkpoint_every=1 -q 2> err.txt & pid=$!
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
  "$program" train --config small.yaml -o run --threads 1 run.loader_threads=$loaders -q 2> err.txt & pid=$!
  until [ "$(wc -l 2> /dev/null < run/metrics.jsonl)" -ge 3 ] 2> /dev/null || ! kill -0 $pid 2> /dev/null; do sleep 0.02; done
  [ $loaders = 4 ] && signal=TERM || signal=USR1
  kill -$signal $pid || problem "$signal: the run had ended: $(cat err.txt)"
  sleep 0.01
  kill -$signal $pid 2> /dev/null  # timeout(1) and schedulers signal a process and its group
  wait $pid
  [ $? -eq 75 ] || problem "$signal: not exit 75: $(cat err.txt)"
  grep -q "stopping" err.txt || problem "$signal: $(cat err.txt)"
  train 0 "20 steps" run.loader_threads=$loaders --resume auto
  as_whole "$loaders loader threads, $signal"
done

# The same, whatever is kept for the backward, before and after a checkpoint.
rm -rf run
train 0 "10 steps" run.max_steps=10 run.recompute=none
says 0 "run.recompute=blocks keeps 0 of 2 blocks for the backward; predicted peak of tensors 0." train --config small.yaml -o run --threads 1 --resume auto run.recompute=blocks
grep -q "was written under other settings" err.txt && problem "recomputation is not of the bits: $(cat err.txt)"
as_whole "another choice of recomputation"

# Two trainers in one folder; a run that is there already; other models' checkpoints.
train 2 "run: holds a run already; go on with --resume auto"
"$program" train --config small.yaml -o busy --threads 1 run.max_steps=100000 -q 2> err.txt & pid=$!
until [ -s busy/metrics.jsonl ] || ! kill -0 $pid 2> /dev/null; do sleep 0.02; done
expect 2 "busy is being written by another fastfold (process $pid" train --config small.yaml -o busy --resume auto
kill -9 $pid
wait $pid 2> /dev/null
says 3 "run/step_00000020.h5: is a checkpoint of another model" train --config small.yaml -o other --resume run/step_00000020.h5 model.c_z=32
says 3 "model.c_z: 16, 32" train --config small.yaml -o run --resume auto model.c_z=32
says 0 "optim.lr: 0.001, 0.0005" train --config small.yaml -o run --resume auto optim.lr=5e-4

# Other beginnings: parameters alone, of a checkpoint or of a file; what does not fit.
expect 0 "2 steps" train --config small.yaml -o again --weights-only run/step_00000020.h5 run.max_steps=2
expect 0 "" convert run/step_00000020.h5 params.npz
expect 0 "2 steps" train --config small.yaml -o npz --weights-only params.npz run.max_steps=2
cmp <(losses again) <(losses npz) || problem "the checkpoint and its parameters begin otherwise"
says 3 "model expects" train --config small.yaml -o other --weights-only params.npz model.c_z=32
expect 0 "" convert params.npz params.h5
# For others to predict with: its own configuration, and no paths of this machine.
expect 0 "" convert run half.h5 --bf16
grep -q '"num_recycle"' half.h5 || problem "half.h5 has lost the configuration"
grep -q "$(basename "$PWD")\|shards-" half.h5 && problem "half.h5 tells where files were"
expect 3 "params.h5: holds parameters only" train --config small.yaml -o other --resume params.h5

# The same in bf16; gradients of samples one after another.
expect 0 "2 steps" train --config small.yaml -o bf16 run.precision=bf16 run.max_steps=2
expect 0 "20 steps" train --config small.yaml -o run2 --threads 2 run.accumulate=1
cmp run2/step_00000020.h5 whole/step_00000020.h5 || problem "accumulation or threads change the bits"

# Configurations and data that cannot be.
refused() { expect 2 "$1" train --config small.yaml -o none "${@:2}"; }
refused "unknown key 'optim.lrr'; did you mean 'lr'?" optim.lrr=1
refused "optim.lr" optim.lr=-1e-3
refused "data.train.crop_size" data.train.crop_size=0
refused "run.recompute is 'some', expected auto, blocks, none" run.recompute=some
refused "run.accumulate is 3" run.accumulate=3 run.global_batch=4
refused "no data; give data.train.shards" data.train.shards=[]
refused "unknown recipe 'dem'; did you mean 'demo'?" recipe=dem
expect 3 "nowhere" train --config small.yaml -o none data.train.shards=nowhere
expect 2 "no folder for the run" train --config small.yaml
cp -r shards cut
truncate -s 20000 cut/*.h5
expect 3 "it is cut off" train --config small.yaml -o none data.train.shards=cut
sed 's/^format 1/format 2/' shards/chains-00001-of-00001.h5 > cut/chains-00001-of-00001.h5
expect 3 "is a shard of format 2" train --config small.yaml -o none data.train.shards=cut
nothing_in none

# Nothing is written where there is no room; the checkpoint before stays whole.
size=$(($(stat -c %s whole/step_00000020.h5) * 5 / 2))
if unshare -rm true 2> /dev/null; then
  mkdir full
  unshare -rm bash -c "mount -t tmpfs -o size=$size none full && \"$program\" train --config small.yaml -o full/run \
    run.checkpoint_every=1 run.keep=9 -q 2> err.txt; echo \$? > code.txt; ls -A full/run > left.txt
    \"$program\" convert full/run/step_00000002.h5 last.npz"
  [ "$(cat code.txt)" = 4 ] || problem "full disk: exit $(cat code.txt): $(cat err.txt)"
  grep -qF "step_00000003.h5: writing the checkpoint failed" err.txt || problem "full disk: $(cat err.txt)"
  grep -q tmp left.txt && problem "full disk: left $(cat left.txt)"
  [ -s last.npz ] || problem "full disk: the checkpoint before is not whole"
fi

# A run that goes wrong keeps its samples, and parity goes wrong at the same operation: of a layer norm's
# scale, all ones at first, one is no number.
expect 0 "1 steps" train --config small.yaml -o first optim.lr=0 run.max_steps=1
expect 0 "" convert first/step_00000001.h5 wild.h5
at=$(LC_ALL=C grep -obUaP '(\x00\x00\x80\x3f){16}' wild.h5 | head -1 | cut -d: -f1)
printf '\0\0\300\177' | dd of=wild.h5 bs=1 seek=$at conv=notrunc 2> dd.txt
crc=$(tail -c +513 wild.h5 | gzip -1 | tail -c 8 | od -An -N4 -tx4 | tr -d ' ')
printf 'fastfold checkpoint\ncrc32 %s of %d bytes\n' $crc $(($(stat -c %s wild.h5) - 512)) |
  dd of=wild.h5 bs=1 conv=notrunc 2> dd.txt
says 3 "3 steps in a row were not finite" train --config small.yaml -o wild --weights-only wild.h5
[ "$(grep -c "is not finite, first in .*; wild/not_finite/.*/command.txt repeats it" err.txt)" -eq 3 ] ||
  problem "not finite: $(cat err.txt)"
operation=$(grep -o 'first in [^;]*' err.txt | head -1)
for sample in wild/not_finite/*; do
  (cd "$sample" && sed "s|^fastfold|$program|" command.txt | bash) > out.txt 2> parity.txt ||
    problem "not finite: the replay failed: $(cat parity.txt)"
  grep -qF "$operation" parity.txt || problem "not finite: $operation, but in the replay $(cat parity.txt)"
done
[ -z "$(ls wild/*.h5 2> /dev/null)" ] || problem "steps that are not finite were saved: $(ls wild)"

# Curves of all of it.
expect 0 "whole/report.html" report whole

finish
