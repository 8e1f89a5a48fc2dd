# What goes wrong around a batch: missing and damaged inputs of single targets, a full disk, two runs into one
# folder, very many records. Each target's trouble is one line, and the others are done.
source "$(dirname "$0")/common.bash"

expect 0 "" init --preset demo --seed 1 -o params.npz
fast=(--params params.npz --num-recycle 0 --threads 1)
printf '>q\nMKTAYIAKQR\n' > q.fasta
row='MKTAYIAKQR'

# One folder of alignments with every kind of damage, and a good target among them.
mkdir -p msas/{good,other,cut,fake,short,empty,missing_entry}
printf '>q\n%s\n>hit\nMKTA-IAKQR\n' $row > msas/good/bfd_uniclust_hits.a3m
printf '>q\nACDEFGHIKL\n' > msas/other/bfd_uniclust_hits.a3m
printf '# STOCKHOLM 1.0\n\nq %s\nhit MKTA-IAKQR\n' $row > msas/cut/uniref90_hits.sto
cp msas/good/bfd_uniclust_hits.a3m msas/fake/bfd_uniclust_hits.a3m.gz
gzip < msas/good/bfd_uniclust_hits.a3m | head -c 40 > msas/short/bfd_uniclust_hits.a3m.gz
for name in good absent other cut fake short empty; do printf '>%s\n%s\n' $name $row; done > all.fasta
"$program" predict all.fasta --alignments msas "${fast[@]}" -o out 2> err.txt
[ $? -eq 5 ] || problem "damaged alignments: expected exit 5: $(cat err.txt)"
told() { grep "^fastfold: $1 failed: " err.txt | grep -qF -- "$2" || problem "$1: does not say '$2': $(cat err.txt)"; }
told absent "msas/absent"
told other "other sequence"
told other "bfd_uniclust_hits.a3m"
told cut "uniref90_hits.sto"
told fake "gz"
told short "bfd_uniclust_hits.a3m.gz"
told empty "msas/empty"
grep -q "6 of 7 targets failed" err.txt || problem "the count: $(cat err.txt)"
[ "$(ls out)" = good ] || problem "not only the good target: $(ls out)"

# What is there stays where the same files have moved; it is made again where one has changed, its size kept.
mkdir -p aside/good
cp msas/good/* aside/good
printf '>good\n%s\n' $row > good.fasta
again() { "$program" predict good.fasta --alignments "$1" "${fast[@]}" --skip-existing -o kept 2> err.txt || problem "$1: $(cat err.txt)"; }
again aside
mv aside moved
again "$PWD/moved"
grep -q "its files are complete" err.txt || problem "the same files elsewhere: $(cat err.txt)"
sed -i s/MKTA-IAKQR/MRTA-IAKQR/ moved/good/*
again moved
grep -q "made from other inputs" err.txt || problem "a changed alignment: $(cat err.txt)"

# The disk is full: one error, the earlier results whole, nothing half-written.
full_disk() {
  mkdir full
  mount -t tmpfs -o size=300k tmpfs full || exit 77
  "$program" predict q.fasta --msa msas/good/bfd_uniclust_hits.a3m "${fast[@]}" -q -o full 2> err.txt || exit 1
  cp -r full/q before
  head -c 1000000 /dev/zero > full/filler 2> /dev/null
  "$program" predict q.fasta --msa-mode single_sequence "${fast[@]}" -q -o full 2> err.txt
  echo $? > code.txt
  find full -name '*tmp*' > left.txt
  for file in full/q/*; do cmp -s $file before/$(basename $file) || echo $file; done > changed.txt
}
export program; export -f full_disk
fast_text="${fast[*]}"
if unshare -rm bash -c "fast=($fast_text); $(declare -f full_disk); full_disk" 2> unshare.txt; then
  [ "$(cat code.txt)" = 4 ] || problem "full disk: exit $(cat code.txt): $(cat err.txt)"
  [ "$(wc -l < err.txt)" -eq 1 ] || problem "full disk: $(cat err.txt)"
  grep -q "No space left" err.txt || problem "full disk: does not say so: $(cat err.txt)"
  [ -s left.txt ] && problem "full disk: left behind: $(cat left.txt)"
  while read -r file; do head -c 1 "$file" > /dev/null 2>&1; done < changed.txt
  [ -s changed.txt ] && problem "full disk: changed: $(cat changed.txt)"
else
  echo "no private mounts here: the full disk was not tried ($(head -1 unshare.txt))"
fi

# Two runs into one folder: a target is one run's, and together they do all.
for i in 1 2 3 4 5 6 7 8; do printf '>t%d\n%s\n' $i $row; done > eight.fasta
two=(predict eight.fasta --msa-mode single_sequence "${fast[@]}" --skip-existing -q -o shared)
"$program" "${two[@]}" 2> first.txt & first=$!
"$program" "${two[@]}" 2> second.txt || problem "the second of two runs: $(cat second.txt)"
wait $first || problem "the first of two runs: $(cat first.txt)"
[ "$(ls shared/*/complete.json | wc -l)" -eq 8 ] || problem "two runs: $(ls shared)"
[ -z "$(find shared -name '*tmp*' -o -name '*lock*')" ] || problem "two runs left: $(find shared)"

# 10,000 records are planned at once; names of records that are alike do not overwrite each other.
awk 'BEGIN { for (i = 0; i < 10000; ++i) printf ">r%d\nMKTAYIAKQR\n", i % 9990 }' > many.fasta
start=$(date +%s)
timeout 60 "$program" predict many.fasta --msa-mode single_sequence "${fast[@]}" --dry-run -q -o many 2> err.txt ||
  problem "10,000 records: $(tail -3 err.txt)"
[ -e many ] && problem "the dry run wrote"

finish
