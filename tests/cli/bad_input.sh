# Bad inputs: exit code, one clear line, nothing half-written.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 -o params.npz
printf '>q\nMKTAYIAKQR\n' > q.fasta
mkdir out
predict() { # predict CODE TEXT ARGS...: with good parameters, into out
  local code=$1 text=$2
  shift 2
  expect "$code" "$text" predict --params params.npz -o out -q "$@"
  nothing_in out
}

: > empty.fasta
predict 3 empty.fasta empty.fasta
head -c 4000 "$program" > binary.fasta
predict 3 binary.fasta binary.fasta
predict 3 no.fasta no.fasta
printf '>q\nMKT1YIAKQR\n' > digit.fasta
predict 3 digit.fasta digit.fasta
printf '>q\n' > hollow.fasta
predict 3 hollow.fasta hollow.fasta

printf '>q\nMKTAYIAKQR\n>a\nMKTAYIAKQ\n' > unequal.a3m
predict 3 unequal.a3m q.fasta --msa unequal.a3m
printf '>q\nMKTAYIAKQR\n>a\nMKTAY?AKQR\n' > illegal.a3m
predict 3 illegal.a3m q.fasta --msa illegal.a3m
printf '>q\nMKTAYIAKQW\n>a\nMKTAYIAKQR\n' > other.a3m
predict 3 other.a3m q.fasta --msa other.a3m
: > empty.a3m
predict 3 empty.a3m q.fasta --msa empty.a3m
predict 3 no.a3m q.fasta --msa no.a3m
predict 3 no_folder q.fasta --alignments no_folder

params() { # params CODE TEXT FILE ARGS...
  local code=$1 text=$2 file=$3
  shift 3
  expect "$code" "$text" predict q.fasta -o out -q --params "$file" "$@"
  nothing_in out
}
head -c 100000 params.npz > truncated.npz
params 3 truncated.npz truncated.npz
params 3 claims_2_60.npz "$data/cli/claims_2_60.npz"
params 3 bomb.npz "$data/cli/bomb.npz"
params 3 "no such file" missing.npz
# The list of misfits follows the message, so this one has more lines.
"$program" predict q.fasta -o out -q --params "$data/cli/multimer.npz" --preset model_1_ptm 2> err.txt
[ $? -eq 3 ] || problem "multimer parameters: expected exit 3: $(head -1 err.txt)"
head -1 err.txt | grep -q "fastfold: .*multimer.npz: .* keys do not fit .*multimer" || problem "multimer parameters: $(head -1 err.txt)"
nothing_in out

: > file
expect 2 "file" predict q.fasta -o file --params params.npz -q
expect 2 "/proc" predict q.fasta -o /proc/fastfold --params params.npz -q

# No GPU that may be used: one sentence on why, exit 4, nothing computed on the CPU instead.
export CUDA_VISIBLE_DEVICES=
no_gpu() { expect 4 "--device cuda cannot be had: " "$@" --device cuda; }
predict 4 "--device cuda cannot be had: " q.fasta --msa-mode single_sequence --device cuda
example_shards pdb1ubi_A
no_gpu train --config demo data.train.shards=shards -o out
no_gpu bench --preset demo --modules-only
for of in predict train bench; do
  expect 2 "--device" $of --device gpu
done
nothing_in out

finish
