# The network that comes with the program predicts a protein of its training set.
source "$(dirname "$0")/common.bash"
repository=$(realpath "$data/../..")

expect 0 "" predict "$repository/examples/ubiquitin.fasta" --params "$repository/models/demo.h5" -o out
expect 0 "" evaluate out/ubiquitin/ranked_000.pdb "$repository/examples/ubiquitin.pdb" --json
grep -oE '"lddt_ca": *0\.[0-9]+' out.txt | awk -F: '{exit !($2 > 0.8)}' || problem "lDDT of CA atoms is not above 0.8: $(cat out.txt)"

finish
