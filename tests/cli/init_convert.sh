# init is deterministic; convert to HDF5 and back gives the same bytes.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 -o a.npz
expect 0 "" init --preset demo --seed 1 -o b.npz
expect 0 "" init --preset demo --seed 2 -o c.npz
cmp -s a.npz b.npz || problem "the same seed gave another file"
cmp -s a.npz c.npz && problem "another seed gave the same file"

expect 0 "" convert a.npz a.h5
expect 0 "" convert a.h5 back.npz
cmp -s a.npz back.npz || problem "npz -> h5 -> npz changed the file"

expect 0 "" convert a.npz half.h5 --bf16
[ $(stat -c %s half.h5) -lt $(($(stat -c %s a.h5) * 6 / 10)) ] || problem "bf16 takes more than 0.6 of f32"
expect 0 "" convert half.h5 half.npz
expect 0 "" convert half.npz again.h5 --bf16
cmp -s half.h5 again.h5 || problem "bf16 values changed on their way through f32"
expect 2 "--bf16: .npz has no bf16" convert a.npz b.npz --bf16

expect 2 ".txt" convert a.npz a.txt
expect 3 "no.npz" convert no.npz a.h5
head -c 100000 a.npz > cut.npz
expect 3 "cut.npz" convert cut.npz cut.h5
[ -e cut.h5 ] && problem "cut.h5 was left behind"
[ -z "$(ls -A | grep -i tmp)" ] || problem "left behind: $(ls -A)"

finish
