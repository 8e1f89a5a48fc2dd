# The command line: help, version, unknown commands and flags, exit code 2.
source "$(dirname "$0")/common.bash"

expect 0 "fastfold 0" --version
expect 0 "predict" --help
expect 0 "--max-msa" predict --help
for command in predict features doctor parity init convert bench; do
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

# The names that AlphaFold's, OpenFold's and ColabFold's users type.
expect 2 "monomer_ptm" predict "$data/cli/short.fasta" --msa-mode single_sequence --params x.npz --model_preset=multimer
expect 2 "--alignments" predict x.fasta --jackhmmer_binary_path /usr/bin/jackhmmer
expect 2 "does not relax" predict x.fasta --models_to_relax=best
expect 2 "--max-msa" predict x.fasta --max-seq 64
expect 3 "no such folder (--data-dir)" predict x.fasta --data_dir nowhere
expect 3 "no such file" predict "$data/cli/short.fasta" --msa_mode single_sequence --jax_param_path x.npz --experiment_config_json c.json
expect 2 "YYYY-MM-DD" predict "$data/cli/short.fasta" --msa-mode single_sequence --params x.npz --max_template_date tomorrow
expect 2 "did you mean '--skip-existing'" predict x.fasta --skip-existin
"$program" init --preset demo --seed 1 -o demo.npz > out.txt 2>&1
expect 2 "did you mean 'num_recycle'" predict "$data/cli/short.fasta" --msa-mode single_sequence --params demo.npz --set model.num_recycl=1 --dry-run -q
printf 'model:\n  c_zz: 4\n' > c.yaml
expect 2 "c.yaml:2" predict "$data/cli/short.fasta" --msa-mode single_sequence --params demo.npz --config c.yaml --dry-run -q
# A flag takes one value, so that INPUT may follow it.
expect 0 "would run demo" predict --params demo.npz --set model.num_recycle=1 "$data/cli/short.fasta" --msa-mode single_sequence --dry-run
expect 0 "demo_2 (2 passes)" predict --params demo.npz --params demo.npz --set model.num_recycle=1 --save single,pair "$data/cli/short.fasta" --msa-mode single_sequence --dry-run
expect 0 "would run demo" predict --params demo.npz "$data/cli/short.fasta" --msa-mode single_sequence --dry-run \
  --models_to_relax=none --num-relax 0 --skip-relaxation --deterministic --precision fp32 --save-single-representations
expect 2 "does not relax" predict x.fasta --params demo.npz --num-relax 1
rm demo.npz c.yaml
expect 2 "f64" predict x.fasta --precision f64
expect 2 "tf32 is for --device cuda" predict "$data/cli/short.fasta" --msa-mode single_sequence --params x.npz --precision tf32
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
