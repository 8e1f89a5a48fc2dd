# doctor: what the machine offers, as text and as JSON, and exit codes.
source "$(dirname "$0")/common.bash"

expect 0 "can run here" doctor
for name in processor kernels threads memory gpu cublas nccl mpi hdf5 folder presets parameters; do
  grep -q " $name " out.txt || problem "doctor does not tell of $name: $(cat out.txt)"
done
grep -q "AVX" out.txt || problem "no processor features: $(cat out.txt)"
grep -q "alphafold_params" out.txt || problem "does not say where parameters are: $(cat out.txt)"
[ -s err.txt ] && problem "doctor says on standard error: $(cat err.txt)"

expect 0 '"can_predict": true' doctor --json
expect 0 '"native_bf16":' doctor --json
FASTFOLD_ISA=v3 expect 0 "AVX2, matrix products" doctor
SLURM_JOB_ID=77 expect 0 "SLURM_JOB_ID=77" doctor

# A folder that is still to be made is judged by the one it will stand in.
expect 0 "new/folder: " doctor -o new/folder
[ -e new ] && problem "doctor made a folder"
touch file
expect 2 "file: nothing can be written there" doctor -o file
expect 2 '"can_predict": false' doctor -o file/below --json

finish
