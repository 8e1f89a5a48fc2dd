# The command line: help, version, unknown commands and flags, exit code 2.
source "$(dirname "$0")/common.bash"

expect 0 "fastfold 0" --version
expect 0 "predict" --help
expect 0 "--max-msa" predict --help
for command in predict parity init convert bench; do
  "$program" --help | grep -q "$command" || problem "--help does not list $command"
done

expect 2 "did you mean 'predict'" predct x.fasta
expect 2 "did you mean '--num-recycle'" predict x.fasta --num-recycl 3
expect 2 "did you mean '--preset'" init --prest demo -o x.npz
expect 2 "did you mean 'model_1_ptm'" init --preset model_1_pmt -o x.npz
expect 2 "DeepMind's" predict nothing.fasta --preset demo
expect 2 "CLUSTERS:EXTRA" predict "$data/cli/short.fasta" --params "$data/cli/multimer.npz" --preset demo --max-msa 12
expect 2 "needs a FASTA file" predict --params x.npz
expect 3 "b.fasta" predict --fasta_paths="$data/cli/short.fasta,b.fasta" --params x.npz
expect 2 "" init
expect 2 "f64" predict x.fasta --precision f64
[ -z "$(ls | grep -v -e out.txt -e err.txt)" ] || problem "left behind: $(ls)"

# The start is fast: nothing heavy is loaded. The best of five, as other work may hold the processor.
best=1000000
for _ in 1 2 3 4 5; do
  start=$(date +%s%N)
  "$program" --version > /dev/null
  milliseconds=$((($(date +%s%N) - start) / 1000000))
  [ "$milliseconds" -lt "$best" ] && best=$milliseconds
done
echo "--version took $best ms"
[ "$best" -lt 200 ] || problem "--version took $best ms, expected less than 200"

finish
