# parity on AlphaFold's small reference: all outputs agree, and a wrong reference is told.
source "$(dirname "$0")/common.bash"
tiny=$data/tiny

"$program" parity --config $tiny/config.json --params $tiny/params.npz --batch $tiny/batch.npz \
  --num_recycle 0 --outputs out.npz --compare $tiny/outputs_r0.npz --tolerance 2e-4 > out.txt 2> err.txt ||
  problem "parity: $(cat out.txt err.txt)"
grep -q agrees out.txt || problem "no verdict: $(cat out.txt)"
[ -s out.npz ] || problem "no outputs"

# The outputs of two recycles are others.
"$program" parity --config $tiny/config.json --params $tiny/params.npz --batch $tiny/batch.npz \
  --num-recycle=0 --compare $tiny/outputs_r2.npz > out.txt 2> err.txt
[ $? -eq 3 ] || problem "a wrong reference was accepted"
grep -q DIFFERS out.txt || problem "no verdict: $(cat out.txt)"

expect 3 "2 recycles" parity --config $tiny/config.json --params $tiny/params.npz --batch $tiny/batch.npz --num-recycle 3
expect 3 "config.json" parity --config no/config.json --params $tiny/params.npz --batch $tiny/batch.npz
# Where a GPU is, the test programs of tests/cuda compare with it.
CUDA_VISIBLE_DEVICES= expect 4 "cuda" parity --config $tiny/config.json --params $tiny/params.npz --batch $tiny/batch.npz --device cuda

finish
