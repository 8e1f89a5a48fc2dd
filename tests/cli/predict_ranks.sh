# predict on many ranks: groups take the targets from one queue, and the structures are those of one rank.
source "$(dirname "$0")/common.bash"
command -v mpirun > /dev/null || { echo "SKIPPED: no mpirun"; exit 0; }
tests=$(dirname "$data")
expect 0 "" init --preset demo --seed 3 --no-zeros -o params.npz
printf '>a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPIL\n>c\nGSHMKTAYIAK\n' > three.fasta
options=(--msa-mode single_sequence --params params.npz --threads 1 --num-recycle 1)
expect 0 "" predict three.fasta "${options[@]}" -o one
for grid in "4 2" "3 3" "2 1"; do
  timeout 110 "$tests/mpirun" ${grid% *} "$program" predict three.fasta "${options[@]}" --dap ${grid#* } -o many 2> err.txt ||
    problem "grid $grid: $(cat err.txt)"
  for target in a b c; do
    timeout 60 "$program" evaluate many/$target/ranked_000.pdb one/$target/ranked_000.pdb > out.txt 2>&1 || problem "$grid: $(cat out.txt)"
    awk '/^ranked_000/ { found = 1; if ($4 < 0.999 || $9 > 0.002) bad = 1 } END { exit bad || !found }' out.txt ||
      problem "grid $grid: another structure of $target: $(cat out.txt)"
  done
  [ "$(grep -c 'ranked_000' err.txt)" -eq 3 ] || problem "grid $grid: not three targets told: $(cat err.txt)"
  rm -rf many
done
# A host without a GPU is told of once.
CUDA_VISIBLE_DEVICES='' timeout 60 "$tests/mpirun" 2 "$program" predict three.fasta "${options[@]}" --device cuda --dap 2 -o none 2> err.txt
[ $? -eq 4 ] || problem "ranks without a GPU: not exit 4"
[ "$(grep -c '^fastfold: --device cuda cannot be had: ' err.txt)" -eq 1 ] || problem "not once: $(cat err.txt)"
finish
