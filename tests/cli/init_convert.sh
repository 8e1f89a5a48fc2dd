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

expect 2 ".txt" convert a.npz a.txt
expect 3 "no.npz" convert no.npz a.h5
head -c 100000 a.npz > cut.npz
expect 3 "cut.npz" convert cut.npz cut.h5
[ -e cut.h5 ] && problem "cut.h5 was left behind"
[ -z "$(ls -A | grep -i tmp)" ] || problem "left behind: $(ls -A)"

finish
