# Ranks on GPUs, one each or sharing: outputs, gradients and a run's losses are one rank's, and no pace of the streams
# changes a bit.
source "$(dirname "$0")/common.bash"
command -v mpirun > /dev/null || { echo "SKIPPED: no mpirun"; exit 0; }
"$program" doctor --json > doctor.json 2> err.txt
grep -A2 '"gpu"' doctor.json | grep -q '"state": "ok"' || { echo "SKIPPED: no GPU"; exit 0; }
tests=$(dirname "$data")
fixture=$data/tiny
ranks() { timeout 110 "$tests/mpirun" "$@" 2> err.txt || problem "$*: $(cat err.txt)"; }
parity=(parity --config "$fixture/config.json" --params "$fixture/params.npz" --batch "$fixture/batch.npz" --device cuda -q)

for way in "" host; do
  export FASTFOLD_COMM=$way
  ranks 2 "$program" "${parity[@]}" --dap 2 --num-recycle 2 --compare "$fixture/outputs_r2.npz" > out.txt
  grep -q ": agrees" out.txt || problem "outputs of two ranks, '$way': $(cat out.txt)"
  for spin in 0 300; do
    FASTFOLD_SPIN_US=$spin ranks 2 "$program" "${parity[@]}" --dap 2 --num-recycle 1 --labels "$fixture/labels.npz" --gradients "g$way$spin.npz"
  done
done
unset FASTFOLD_COMM
for other in g300 ghost0 ghost300; do cmp g0.npz $other.npz || problem "$other has other gradients than g0"; done

# In f32, whose rounding grows from step to step.
examples=$(dirname "$tests")/examples/training
mkdir few
cp "$examples"/chains/{5PTI_A,pdb1ubi_A,pdb1ejg_A}.pdb.gz few
expect 0 "3 chains in 1 shard" prepare build few --single-sequence -o shards
cat > small.yaml << 'YAML'
recipe: demo
data: {train: {shards: [shards], crop_size: 19}}
model: {num_recycle: 0}
run: {global_batch: 2, max_steps: 5, checkpoint_every: 5}
YAML
losses() { sed -n 's/.*"kind":"train".*"loss\/total":\([^,]*\),.*/\1/p' "$1/metrics.jsonl"; }
expect 0 "" train --config small.yaml --device cuda -q -o one
for dap in 1 2; do
  ranks 2 "$program" train --config small.yaml --device cuda -q -o dap$dap run.dap=$dap
  paste <(losses one) <(losses dap$dap) | awk '
    { gap = $1 - $2; if (gap < 0) gap = -gap; if (NF != 2 || !(gap <= 1e-3 * $1)) bad = 1 }
    END { exit bad || NR != 5 }' || problem "dap $dap learns otherwise: $(losses one) and $(losses dap$dap)"
done
finish
