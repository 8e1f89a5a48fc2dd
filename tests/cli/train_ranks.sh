# train on many ranks: every grid learns as one rank does, a checkpoint of one grid goes on on another, a rank
# that is killed ends the others, and what is wrong is told once.
source "$(dirname "$0")/common.bash"
command -v mpirun > /dev/null || { echo "SKIPPED: no mpirun"; exit 0; }
tests=$(dirname "$data")

example_shards 5PTI_A pdb1ubi_A pdb1ejg_A
# 19 residues and 5 rows: neither 2 nor 4 divides them.
cat - <(small_network 0) > small.yaml << 'YAML'
recipe: demo
data:
  train: {shards: [shards], crop_size: 19, max_msa_clusters: 5, max_extra_msa: 6}
  validation: {shards: [shards]}
optim: {warmup_samples: 8}
run: {global_batch: 4, precision: f64, max_steps: 30, checkpoint_every: 10, val_every: 30}
YAML
# ranks N DAP OUT ARGS...: a run on N ranks, DAP of them to a sample.
ranks() {
  local n=$1 dap=$2 out=$3
  shift 3
  timeout 300 "$tests/mpirun" "$n" "$program" train --config small.yaml run.dap="$dap" --threads 1 -q -o "$out" "$@" 2> err.txt
}
losses() { sed -n 's/.*"kind":"train".*"loss\/total":\([^,]*\),.*/\1/p' "$1/metrics.jsonl"; }
# as_one OUT: thirty losses within 1e-6 of one rank's, and its validation.
as_one() {
  paste <(losses one) <(losses "$1") | awk '
    { gap = $1 - $2; if (gap < 0) gap = -gap; if (NF != 2 || !(gap <= 1e-6)) bad = 1; if (gap > worst) worst = gap }
    END { printf "worst gap %g of %d losses\n", worst, NR; exit bad || NR != 30 }' || problem "$1: other losses than on one rank"
  paste <(grep -o '"val/[^,]*' one/metrics.jsonl) <(grep -o '"val/[^,]*' "$1/metrics.jsonl") | tr ':' ' ' | awk '
    { gap = $2 - $4; if (gap < 0) gap = -gap; if (!(gap <= 1e-4)) bad = 1 } END { exit bad || NR != 6 }' ||
    problem "$1: another validation than on one rank"
}

timeout 300 "$program" train --config small.yaml --threads 1 -q -o one || problem "one rank"
for grid in "4 4" "2 1" "4 2"; do
  ranks ${grid% *} ${grid#* } "run${grid/ /x}" || problem "grid $grid: $(cat err.txt)"
  as_one "run${grid/ /x}"
done

# Whatever is kept for the backward.
ranks 2 2 kept run.recompute=none run.max_steps=15 run.val_every=0 || problem "run.recompute=none: $(cat err.txt)"
ranks 2 2 kept run.recompute=1 --resume auto || problem "run.recompute=1: $(cat err.txt)"
as_one kept

# A checkpoint goes on anywhere.
ranks 4 4 moved run.max_steps=10 run.val_every=0 || problem "1 x 4: $(cat err.txt)"
ranks 4 2 moved run.max_steps=20 run.val_every=0 --resume auto || problem "2 x 2: $(cat err.txt)"
timeout 300 "$program" train --config small.yaml --threads 1 -q -o moved --resume auto 2> err.txt || problem "1 x 1: $(cat err.txt)"
as_one moved

# A signal to one rank checkpoints all.
ranks 2 2 stopped run.max_steps=100000 run.val_every=0 & pid=$!
until [ -s stopped/metrics.jsonl ] || ! kill -0 $pid 2> /dev/null; do sleep 0.1; done
kill -USR1 "$(pgrep -f -- "-o stopped" | while read -r p; do tr '\0' ' ' < /proc/$p/environ | grep -q 'OMPI_COMM_WORLD_RANK=1 ' && grep -qv mpirun /proc/$p/comm && echo $p; done | head -1)" || problem "no rank 1 to stop"
wait $pid
code=$?
[ $code -eq 75 ] || problem "a signal to rank 1: exit $code: $(cat err.txt)"
compgen -G 'stopped/step_*.h5' > /dev/null || problem "a signal to rank 1: no checkpoint"

# kill -9 of one rank of four ends the others within 20 seconds; the run goes on from its checkpoint.
ranks 4 2 killed run.max_steps=100000 run.val_every=0 run.checkpoint_every=2 & pid=$!
until compgen -G 'killed/step_*.h5' > /dev/null || ! kill -0 $pid 2> /dev/null; do sleep 0.1; done
kill -9 "$(pgrep -f -- "-o killed" | while read -r p; do tr '\0' ' ' < /proc/$p/environ | grep -q 'OMPI_COMM_WORLD_RANK=2 ' && echo $p; done | head -1)" || problem "no rank 2 to kill"
start=$SECONDS
wait $pid && problem "a killed rank: exit 0"
[ $((SECONDS - start)) -le 20 ] || problem "a killed rank: the others ended after $((SECONDS - start)) s"
pgrep -f -- "-o killed" > /dev/null && problem "a killed rank: others are alive"
last=$(ls killed/step_*.h5 | tail -1 | tr -dc 0-9)
timeout 300 "$program" train --config small.yaml --threads 1 -o killed --resume auto run.max_steps=$((10#$last + 1)) run.val_every=0 2> err.txt ||
  problem "after a kill: $(cat err.txt)"
grep -q "resumed killed/step_" err.txt || problem "after a kill: did not resume: $(cat err.txt)"

# Told once, by rank 0 alone; mpirun may end ranks that are still on their way out.
once() {
  [ "$(grep '^fastfold: ' err.txt | grep -vc 'terminated, stopping$')" -eq 1 ] && grep -qF -- "$1" err.txt || problem "not once '$1': $(cat err.txt)"
}
ranks 3 2 wrong && problem "3 ranks, dap 2"
once "which 2 ranks a protein (dap) do not divide"
ranks 2 2 wrong data.train.shards=nowhere && problem "no shards"
once "nowhere"
ranks 4 1 wrong run.global_batch=3 && problem "fewer samples than groups"
once "run.global_batch is 3"
OMPI_MCA_plm=isolated OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 mpirun --oversubscribe --bind-to none \
  -np 1 "$program" train --config small.yaml -q -o wrong : -np 1 "$program" train --config small.yaml -q -o wrong optim.lr=0.5 2> err.txt &&
  problem "two configurations"
once "optim.lr"
timeout 60 "$tests/mpirun" 2 "$program" evaluate a b 2> err.txt && problem "evaluate on two ranks"
once "works with one rank"
finish
