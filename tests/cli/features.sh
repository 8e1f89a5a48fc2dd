# fastfold features: what it writes is what predict takes back; bad alignments are named.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 --no-zeros -o params.npz
printf '>q one/two caf\xc3\xa9\nmktayiakqr\n' > q.fasta
mkdir -p msas/q
printf '>q\nMKTAYIAKQR\n>a\nMKTAacYI-KQR\n>b\nMKSAYIAKQR\n' > msas/q/bfd_uniref_hits.a3m
printf '# STOCKHOLM 1.0\nq MKTA--YIAKQR\nc MKTAWWYIAKQ-\nd MKT.--Y.AKQR\n//\n' | gzip > msas/q/uniref90_hits.sto.gz

# The same structure from files and from features.
expect 0 "different rows" features q.fasta --alignments msas -o features.npz
expect 0 "" predict q.fasta --alignments msas --params params.npz --num-recycle 1 -o from_files -q
expect 0 "" predict --features features.npz --params params.npz --num-recycle 1 -o from_features -q
cmp from_files/q/ranked_000.pdb from_features/features/ranked_000.pdb || problem "features give another structure"

expect 2 "holds the templates too" predict --features features.npz --template x.pdb --params params.npz
expect 0 "" features q.fasta --alignments msas --preset demo --num-recycle 1 -o given.npz
expect 3 "holds the choices of 2 slices" predict --features given.npz --params params.npz --num-recycle 2 --dry-run -q
expect 0 "" predict --features given.npz --params params.npz --num-recycle 1 --random-seed 9 -o from_choices -q
cmp from_files/q/ranked_000.pdb from_choices/given/ranked_000.pdb || problem "choices give another structure"
expect 0 "" predict --features features.npz --params params.npz --num-recycle 1 --random-seed 9 -o from_seed -q
cmp -s from_files/q/ranked_000.pdb from_seed/features/ranked_000.pdb && problem "another seed gives the same structure"

# The merged alignment is an input of its own, with the same features.
if [ -f from_files/q/msa.a3m ]; then
  expect 0 "" features from_files/q/msa.a3m -o again.npz -q
  cmp features.npz again.npz || problem "msa.a3m gives other features"
fi

# Slices are made again from their choices.
expect 0 "" features q.fasta --alignments msas --preset model_1 --num-recycle 1 --max-msa 6:4 -o slices.npz -q
expect 0 "" features --features features.npz --preset model_1 --max-msa 6:4 --choices slices.npz -o same.npz -q
cmp slices.npz same.npz || problem "choices give other slices"
expect 3 "random/shuffle0" features --features features.npz --preset model_1 --choices features.npz -o no.npz
expect 2 "--preset" features q.fasta --choices slices.npz -o no.npz
expect 2 "holds the features of one target" features q.fasta q.fasta -o no.npz

bad() { # bad TEXT FILE: an alignment that is refused, while the other target of the batch goes on
  expect 3 "$1" features q.fasta --msa "$2" -o no.npz
  [ ! -e no.npz ] || problem "$2: wrote features"
}
head -c 40 <(gunzip -c msas/q/uniref90_hits.sto.gz) > cut.sto
bad "cut.sto: " cut.sto
gunzip -c msas/q/uniref90_hits.sto.gz | sed '$d' > end.sto
bad "is incomplete" end.sto
cp msas/q/bfd_uniref_hits.a3m plain.a3m.gz
bad "holds no gzip data" plain.a3m.gz
head -c 60 msas/q/uniref90_hits.sto.gz > cut.sto.gz
bad "ends too early" cut.sto.gz
: > empty.sto
bad "empty.sto: is an empty file" empty.sto
printf '>other\nMKTAYIAKQW\n' > other.a3m
bad "another sequence" other.a3m
printf '>p\nMKTAYIAKQR\n' > p.fasta
expect 3 "msas/p (not there)" features p.fasta --alignments msas -o no.npz
mkdir msas/none
printf '>none\nMKT\n>q\nMKTAYIAKQR\n' > two.fasta
"$program" predict two.fasta --alignments msas --params params.npz --num-recycle 0 -o batch -q 2> err.txt
[ $? -eq 5 ] && grep -q "msas/none, msas/none/msas" err.txt || problem "batch: $(cat err.txt)"
[ -s batch/q/ranked_000.pdb ] || problem "a missing alignment stopped the batch"

# Long and many.
{ echo ">long"; head -c 40000 /dev/zero | tr '\0' 'M'; } > long.fasta
expect 0 "40000 residues" features long.fasta -o long.npz
finish
