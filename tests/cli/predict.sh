# predict from FASTA and a3m to files; one failed target does not stop the others.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 -o params.npz
printf '>one first\nMKTAYIAKQR\nQISFVKSHFS\n>two\nGSHMKLVT\n' > two.fasta
mkdir -p msas/one
printf '>one\nMKTAYIAKQRQISFVKSHFS\n>a\nMKTAYIAK-RQISFVKSHFS\n>b\nMRTAYIAKQRqqQISFVKSH-S\n' > msas/one/hits.a3m

"$program" predict two.fasta --params params.npz --alignments msas -o out --num_recycle 1 > out.txt 2> err.txt ||
  problem "predict: $(cat err.txt)"
grep -q "peak memory" err.txt || problem "no peak memory: $(cat err.txt)"
grep -q "two: no alignment" err.txt || problem "no notice of the single sequence: $(cat err.txt)"
for tag in one two; do
  for file in ranked_000.pdb scores_rank_000.json timings.json; do
    [ -s out/$tag/$file ] || problem "out/$tag/$file is missing"
  done
done
[ "$(grep -c ' CA ' out/one/ranked_000.pdb)" -eq 20 ] || problem "out/one has not 20 CA"
tail -1 out/one/ranked_000.pdb | grep -q '^END ' || problem "no END"
for key in plddt pae ptm max_pae; do
  grep -q "\"$key\"" out/one/scores_rank_000.json || problem "no $key in the scores"
done
[ -z "$(find out -name '*tmp*')" ] || problem "temporary files left: $(find out)"

# Same input, same seed: the same bytes; another seed: others.
"$program" predict two.fasta --params params.npz --alignments msas -o again --num-recycle=1 -q 2> err.txt
[ -s err.txt ] && problem "-q still says: $(cat err.txt)"
cmp -s out/one/ranked_000.pdb again/one/ranked_000.pdb || problem "the same run gave another structure"
cmp -s out/one/scores_rank_000.json again/one/scores_rank_000.json || problem "the same run gave other scores"

# One target's alignment is of another protein: the other target is still done.
printf '>x\nACDEFGHIKL\n' > msas/one/hits.a3m
"$program" predict two.fasta --params params.npz --alignments msas -o partial --num-recycle 0 2> err.txt
[ $? -eq 5 ] || problem "a failed target: expected exit 5: $(cat err.txt)"
grep -q "one failed" err.txt || problem "does not name the failed target: $(cat err.txt)"
[ -s partial/two/ranked_000.pdb ] || problem "the good target was not done"
[ -e partial/one ] && problem "the failed target left files"

finish
