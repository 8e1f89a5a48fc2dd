# scripts/slurm: what the jobs do with exit codes, signals, shares of targets, with stand-ins for SLURM.
source "$(dirname "$0")/common.bash"
root=$(dirname "$(dirname "$data")")
jobs=$root/scripts/slurm

# srun runs one rank in its place, whose process is in the file `rank`; scontrol is noted.
mkdir bin
cat > bin/srun << 'END'
#!/usr/bin/env bash
echo "$*" >> sruns
echo $$ > rank
while [[ $1 == --* ]]; do shift; done
exec "$@"
END
echo 'echo "$*" >> scontrols' > bin/scontrol
# A fastfold that notes its arguments and the records that it was given, and ends as it is told.
cat > bin/noted << 'END'
#!/usr/bin/env bash
echo "$*" >> args
[ "$1" = predict ] && { grep '^>' "$2" >> records; echo "$2" >> shares; }
exit "${CODE:-0}"
END
chmod +x bin/*
export PATH=$work/bin:$PATH SLURM_JOB_ID=17 SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=4 SLURM_CPUS_PER_TASK=2

# as CODE JOB ARGS...: a job ends with CODE.
as() {
  local code=$1 job=$2
  shift 2
  rm -f args sruns scontrols
  bash "$jobs/$job.sbatch" "$@" > out.txt 2> err.txt
  local got=$?
  [ $got -eq "$code" ] || problem "$job: exit $got, expected $code: $(cat out.txt err.txt)"
}

for job in "$jobs"/*.sbatch; do
  bash -n "$job" || problem "$job"
  grep -q '^#SBATCH --time=' "$job" || problem "$job: no time limit"
done

# Training: signalled it goes back to the queue and on from its checkpoint, until it is done.
grep -qx '#SBATCH --signal=USR1@[0-9]*' "$jobs/train.sbatch" || problem "the ranks get no signal"
example_shards 5PTI_A pdb1ubi_A
cat - <(small_network 0) > train.yaml << 'END'
recipe: demo
data:
  train: {shards: [shards], crop_size: 16, max_msa_clusters: 4, max_extra_msa: 4}
run: {global_batch: 1, max_steps: 1000000}
END
export FASTFOLD=$program DAP=1
bash "$jobs/train.sbatch" > out.txt 2> err.txt & job=$!
until [ -s run/metrics.jsonl ] || ! kill -0 $job 2> /dev/null; do sleep 0.05; done
kill -USR1 "$(cat rank)"
wait $job
[ $? -eq 75 ] || problem "signalled: not exit 75: $(cat out.txt err.txt)"
[ "$(cat scontrols)" = "requeue 17" ] || problem "not back in the queue: $(cat scontrols out.txt err.txt)"
steps=$(tail -1 run/metrics.jsonl | grep -o '"step":[0-9]*' | cut -d: -f2)
as 0 train run.max_steps=$((steps + 3))
grep -q "resumed run/step_" err.txt || problem "not resumed: $(cat err.txt)"
[ ! -e scontrols ] || problem "done, and yet back in the queue"
grep -q -- '--kill-on-bad-exit=0' sruns || problem "the first rank's 75 would kill the others: $(cat sruns)"
as 2 train optim.learning_rate=1
[ ! -e scontrols ] || problem "a usage error went back in the queue"
FASTFOLD=noted CODE=4 DAP='' as 4 train
grep -q -- '--threads 2 .*run.dap=4$' args || problem "train: $(cat args)"

# Predictions. The real program takes the flags; the noted one does not look at them.
export FASTFOLD=noted
TARGET=long.fasta
printf '>long\nMKTAYIAKQR\n' > long.fasta
as 0 predict_dap --num-seeds 2
grep -q '^predict long.fasta .*--dap 4 --threads 2 --skip-existing --num-seeds 2$' args || problem "predict_dap: $(cat args)"
CODE=4 as 4 predict_dap

for i in 1 2 3 4 5 6 7; do printf '>target%d of seven\nMKTAY\nIAKQR\n' $i; done > many.fasta
export SLURM_ARRAY_TASK_COUNT=3
rm -f records
for task in 1 2 3; do SLURM_ARRAY_TASK_ID=$task as 0 predict_batch; done
[ "$(sort records)" = "$(grep '^>' many.fasta)" ] || problem "not each target once: $(cat records)"
rm -f records
SLURM_ARRAY_TASK_COUNT=1 SHARES=3 SLURM_ARRAY_TASK_ID=2 CODE=5 as 5 predict_batch
[ "$(wc -l < records)" -eq 2 ] || problem "one of three shares: $(cat records)"
SHARES=9 SLURM_ARRAY_TASK_ID=8 as 0 predict_batch
[ ! -e args ] || problem "a share without targets was run: $(cat args)"
while IFS= read -r share; do [ ! -e "$share" ] || [ "$share" = long.fasta ] || problem "$share was left"; done < shares
"$program" predict --help > help.txt
for flag in $(grep -ohE -- '--(alignments|params|threads|skip-existing)' "$jobs"/predict_*.sbatch | sort -u); do
  grep -q -- "$flag" help.txt || problem "predict has no $flag"
done

finish
