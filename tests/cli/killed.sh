# A batch killed at any moment and run again with --skip-existing is complete: ten times out of ten,
# every file as an uninterrupted run writes it.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 --no-zeros -o params.npz
for name in a b c d e f; do printf '>%s\nMKTAYIAKQRQISFVKSH%s\n' $name "$(tr a-f ACDEFG <<< $name)"; done > six.fasta
settings=(--params params.npz --msa-mode single_sequence --threads 1)
batch() { # batch OUT ARGS...
  "$program" predict six.fasta "${settings[@]}" --num-recycle 0 -q -o "$@"
}

start=$(date +%s%N)
batch whole || problem "the uninterrupted batch failed"
took=$((($(date +%s%N) - start) / 1000))
[ "$(ls whole | wc -l)" -eq 6 ] || problem "not six targets: $(ls whole)"

interrupted=0
for round in 1 2 3 4 5 6 7 8 9 10; do
  rm -rf out
  "$program" predict six.fasta "${settings[@]}" --num-recycle 0 -q -o out & pid=$!
  wait_us=$(((RANDOM * 32768 + RANDOM) % took))
  sleep "$((wait_us / 1000000)).$(printf %06d $((wait_us % 1000000)))"
  kill -9 $pid 2> /dev/null && interrupted=$((interrupted + 1))
  wait $pid 2> /dev/null
  batch out --skip-existing 2> err.txt || problem "round $round, killed after $wait_us us: $(cat err.txt)"
  for file in ranked_000.pdb ranked_000.cif scores_rank_000.json pae_rank_000.json ranking.json msa.a3m \
    coverage.svg plddt.svg pae.svg; do
    for name in a b c d e f; do
      cmp -s whole/$name/$file out/$name/$file || problem "round $round, killed after $wait_us us: $name/$file differs"
    done
  done
  [ "$(cd whole && find . | sort)" = "$(cd out && find . | sort)" ] ||
    problem "round $round, killed after $wait_us us: other files: $(diff <(cd whole && find . | sort) <(cd out && find . | sort))"
done
[ $interrupted -gt 0 ] || problem "no round was interrupted"

# Nothing is left to do, and the lock and the list of files of a run killed after its last file go; a
# file that was cut off afterwards is noticed and made again.
echo "process 1 on nowhere" > out/.a.lock
cp out/b/complete.json out/b/.pending.json
"$program" predict six.fasta "${settings[@]}" --num-recycle 0 -o out --skip-existing 2> err.txt || problem "nothing to do: $(cat err.txt)"
[ ! -e out/.a.lock ] || problem "a killed run's lock was left"
[ ! -e out/b/.pending.json ] || problem "a killed run's list of files was left"
grep -q "6 of 6 targets were left as they are" err.txt || problem "not all were skipped: $(cat err.txt)"
truncate -s 100 out/c/ranked_000.pdb
batch out --skip-existing || problem "the repair failed"
cmp -s whole/c/ranked_000.pdb out/c/ranked_000.pdb || problem "the damaged file was not made again"

# Other settings: made again.
"$program" predict six.fasta "${settings[@]}" --num-recycle 1 -o out --skip-existing 2> err.txt || problem "other settings: $(cat err.txt)"
grep -q "a: is there, made from other inputs or settings" err.txt || problem "other settings were not noticed: $(cat err.txt)"
cmp -s whole/c/ranked_000.pdb out/c/ranked_000.pdb && problem "the old structure was left"

finish
