# README's commands run as written. Small stand-ins replace what is not here: the network is the demo
# preset's, untrained, with one pass, the sequences are short, and training is of a few steps.
source "$(dirname "$0")/common.bash"
root=$(dirname "$(dirname "$data")")

"$program" init --preset demo --seed 1 -o params_model_1_ptm.npz > out.txt 2>&1 || problem "init failed"
mkdir -p params mmcif alignments/one alignments/two/msas
cp params_model_1_ptm.npz params
cp -r "$root/examples" .
printf '>query\nMKTAYIAKQR\n' > query.fasta
printf '>query\nMKTAYIAKQR\n>hit\nMKTA-IAKQR\n' > query.a3m
printf '>one\nMKTAYIAKQR\n>two\nMKTAYIAKQR\n' > many.fasta
cp query.a3m alignments/one/bfd_uniclust_hits.a3m
gzip < query.a3m > alignments/two/msas/bfd_uniclust_hits.a3m.gz

fastfold() {
  local small=()
  [[ "$*" = predict* && "$*" != *"--params run"* ]] && small=(--preset demo --num-recycle 0)
  [ "$1" = train ] && small=(run.max_steps=$((++trained)) run.global_batch=1 run.val_every=0 data.train.crop_size=16)
  "$program" "$@" "${small[@]}"
}
ran=0 trained=0
while IFS= read -r line; do
  eval "$line" > out.txt 2> err.txt || problem "'$line': $(cat out.txt err.txt)"
  ran=$((ran + 1))
done < <(sed -n '/^```/,/^```/p' "$root/README.md" | grep '^fastfold ')
[ $ran -ge 15 ] || problem "only $ran commands found in README.md"
for file in config.yaml metrics.jsonl report.html step_00000001.h5 step_00000002.h5; do
  [ -s "run/$file" ] || problem "run/$file is missing: $(ls run)"
done
# The files that README names are there.
for file in $(sed -n '/^### Results/,/^## /p' "$root/README.md" | grep -o '^| `[^|]*|' | grep -o '`[a-z0-9_.]*[.][a-z]*`' |
  tr -d '`' | grep -v -e '^[.]' -e arrays); do
  [ -s "results/query/$file" ] || problem "results/query/$file is missing: $(ls results/query)"
done

finish
