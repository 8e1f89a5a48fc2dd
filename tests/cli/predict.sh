# predict from FASTA, a3m and templates to files; ranking, layouts, dry runs; one failed target does not
# stop the others.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 --no-zeros -o params.npz
printf '>one first\nMKTAYIAKQR\nQISFVKSHFS\n>two\nGSHMKLVT\n' > two.fasta
mkdir -p msas/one msas/two
printf '>one\nMKTAYIAKQRQISFVKSHFS\n>a\nMKTAYIAK-RQISFVKSHFS\n>b\nMRTAYIAKQRqqQISFVKSH-S\n' > msas/one/hits.a3m
printf '>two\nGSHMKLVT\n' > msas/two/hits.a3m

# A dry run reads everything and writes nothing.
"$program" predict two.fasta --params params.npz --alignments msas -o out --dry-run 2> err.txt ||
  problem "dry run: $(cat err.txt)"
grep -q "one: 20 residues, 3 sequences" err.txt || problem "dry run: $(cat err.txt)"
[ -e out ] && problem "the dry run wrote files"

"$program" predict two.fasta --params params.npz --alignments msas -o out --num_recycle 1 \
  --json-log log.jsonl > out.txt 2> err.txt || problem "predict: $(cat err.txt)"
grep -q "peak memory" err.txt || problem "no peak memory: $(cat err.txt)"
grep -q "two: no alignment" err.txt || problem "no warning of the single sequence: $(cat err.txt)"
for tag in one two; do
  for file in ranked_000.pdb ranked_000.cif scores_rank_000.json pae_rank_000.json ranking.json timings.json \
    run.json msa.a3m report.html coverage.svg plddt.svg pae.svg complete.json; do
    [ -s out/$tag/$file ] || problem "out/$tag/$file is missing"
  done
done
[ "$(ls out | sort | tr '\n' ' ')" = "one two " ] || problem "more than the targets: $(ls -a out)"
[ "$(grep -c ' CA ' out/one/ranked_000.pdb)" -eq 20 ] || problem "out/one has not 20 CA"
tail -1 out/one/ranked_000.pdb | grep -q '^END ' || problem "no END"
for key in plddt pae ptm max_pae; do
  grep -q "\"$key\"" out/one/scores_rank_000.json || problem "no $key in the scores"
done
grep -q '"sha256"' out/one/run.json || problem "no hash of the parameters in run.json"
[ "$(grep -c '"level": *"target"' log.jsonl)" -eq 2 ] || problem "no event of each target: $(cat log.jsonl)"

# Same input, same seed: the same bytes. Again from msa.a3m: the same too.
"$program" predict two.fasta --params params.npz --alignments msas -o again --num-recycle=1 -q 2> err.txt ||
  problem "again: $(cat err.txt)"
cmp -s out/one/ranked_000.pdb again/one/ranked_000.pdb || problem "the same run gave another structure"
cmp -s out/one/scores_rank_000.json again/one/scores_rank_000.json || problem "the same run gave other scores"
printf '>one\nMKTAYIAKQRQISFVKSHFS\n' > one.fasta
"$program" predict one.fasta --params params.npz --msa out/one/msa.a3m -o from_a3m --num-recycle=1 -q 2> err.txt ||
  problem "from msa.a3m: $(cat err.txt)"
cmp -s out/one/ranked_000.pdb from_a3m/one/ranked_000.pdb || problem "msa.a3m gave another structure"
printf '>one\nMKTAYIAKQRQISFVKSHFS\n>a\nMKTWYIAK-RQISFVKSHFS\n' > other.a3m
"$program" predict one.fasta --params params.npz --msa other.a3m -o from_other --num-recycle=1 -q 2> err.txt
cmp -s out/one/ranked_000.pdb from_other/one/ranked_000.pdb && problem "another alignment gave the same structure"

# From features.npz: the same.
"$program" features one.fasta --msa msas/one/hits.a3m -o features.npz -q 2> err.txt || problem "features: $(cat err.txt)"
"$program" predict --features features.npz --params params.npz -o from_features --num-recycle 1 -q 2> err.txt ||
  problem "from features: $(cat err.txt)"
cmp -s out/one/ranked_000.pdb from_features/features/ranked_000.pdb || problem "features.npz gave another structure"

# Models and seeds, ranked; the layouts of the peers.
expect 0 "" init --preset demo --seed 2 --no-zeros -o other.npz
ranked() { # ranked LAYOUT ARGS...
  "$program" predict one.fasta --params params.npz --params other.npz --num-seeds 2 --msa msas/one/hits.a3m \
    --num-recycle 0 --layout $1 -o $1 "${@:2}" 2> err.txt || problem "$1: $(cat err.txt)"
}
ranked fastfold --rank ptm --save single,pair
[ "$(ls fastfold/one/ranked_00?.pdb | wc -l)" -eq 4 ] || problem "not four models: $(ls fastfold/one)"
[ -s fastfold/one/arrays_rank_003.npz ] || problem "no saved arrays: $(ls fastfold/one)"
grep -q '"ptm' fastfold/one/ranking.json || problem "not ranked by pTM: $(cat fastfold/one/ranking.json)"
"$program" predict one.fasta --params params.npz --msa msas/one/hits.a3m --num-recycle 0 -o fastfold -q
[ "$(ls fastfold/one/ranked_00?.pdb | wc -l)" -eq 1 ] || problem "models of the run before are left: $(ls fastfold/one)"
ranked alphafold
for file in ranked_0.pdb ranked_3.cif ranking_debug.json timings.json; do
  [ -s alphafold/one/$file ] || problem "alphafold/one/$file is missing: $(ls alphafold/one)"
done
grep -q '"predict_and_compile_demo_2_pred_1"' alphafold/one/timings.json ||
  problem "not AlphaFold's names: $(cat alphafold/one/timings.json)"
ranked colabfold
[ -s colabfold/one.a3m ] && [ -s colabfold/one.done.txt ] || problem "ColabFold's files: $(ls colabfold)"
ls colabfold | grep -q '^one_scores_rank_004_.*_seed_00[01].json$' || problem "ColabFold's files: $(ls colabfold)"
expect 0 "" predict one.fasta --params params.npz --params other.npz --msa msas/one/hits.a3m --num-recycle 0 \
  --stop-at-score 1 -o early
[ "$(ls early/one/ranked_00?.pdb | wc -l)" -eq 1 ] || problem "--stop-at-score did not stop"

# One target's alignment is of another protein: the other target is still done.
printf '>x\nACDEFGHIKL\n' > msas/one/hits.a3m
"$program" predict two.fasta --params params.npz --alignments msas -o partial --num-recycle 0 2> err.txt
[ $? -eq 5 ] || problem "a failed target: expected exit 5: $(cat err.txt)"
grep -q "one failed" err.txt || problem "does not name the failed target: $(cat err.txt)"
[ -s partial/two/ranked_000.pdb ] || problem "the good target was not done"
[ -e partial/one ] && problem "the failed target left files"

# Templates that no model takes are told, and the structure does not claim them.
printf '>ub\nMQIFVKTLTGKTITLEVEPSDTIENVKAKI\n' > ub.fasta
"$program" predict ub.fasta --params params.npz --msa-mode single_sequence --template "$data/../../examples/ubiquitin.pdb" \
  --num-recycle 0 -o templates 2> err.txt || problem "templates: $(cat err.txt)"
grep -q "1 templates found, but none of the models takes any" err.txt || problem "templates: $(cat err.txt)"
grep -q "template search" templates/ub/ranked_000.cif && problem "the structure claims templates"

# Names that no file system likes, and a target that no machine can hold.
printf '>../../etc/passwd x\nMKTAYIAK\n>a b/c \xc3\xa9t\xc3\xa9 </script>\nMKTAYIAKQ\n>.hidden\nMKTAYIAKQR\n' > names.fasta
"$program" predict names.fasta --params params.npz --msa-mode single_sequence -o names --num-recycle 0 2> err.txt ||
  problem "names: $(cat err.txt)"
[ "$(find names -name ranked_000.pdb | wc -l)" -eq 3 ] || problem "names: $(find names)"
[ -z "$(find names -maxdepth 1 -name '.*')" ] || problem "hidden files: $(find names)"
{ printf '>small\nMKTAYIAK\n>huge\n'; head -c 40000 /dev/zero | tr '\0' A; echo; } > huge.fasta
"$program" predict huge.fasta --params params.npz --msa-mode single_sequence -o huge --num-recycle 0 2> err.txt
[ $? -eq 5 ] || problem "40,000 residues: expected exit 5: $(cat err.txt)"
grep -q "huge failed: 40000 residues need at least" err.txt || problem "40,000 residues: $(cat err.txt)"

finish
