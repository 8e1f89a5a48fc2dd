# prepare: build, verify, stats; inputs that cannot be used; damage; a build killed at any moment.
source "$(dirname "$0")/common.bash"
pdb=$data/evaluate

# tsv KIND FILE TEXT: rejected.tsv of the last build has such a line.
tsv() { grep -P "^$1\t$2\t" out/rejected.tsv | grep -qF -- "$3" || problem "no '$1 $2 $3' in: $(cat out/rejected.tsv)"; }
number() { grep -oP "\"$2\": \K[0-9.]+" <<< "$1" | head -1; }
is() { [ "$1" = "$2" ] || problem "$3: '$1', expected '$2'"; }

# One chain with an alignment (a row that only inserts is none), one without, a cluster file.
mkdir -p structures alignments/1BD2_B alignments/BP_3JQH_A
cp "$pdb/1BD2_B.pdb.gz" "$pdb/bp_4CUP.cif.gz" structures
b2m=$(zcat "$pdb/1BD2_B.pdb.gz" | awk '/^ATOM/ && substr($0, 13, 4) == " CA " { print substr($0, 18, 3) }' |
  sed 's/ALA/A/;s/ARG/R/;s/ASN/N/;s/ASP/D/;s/CYS/C/;s/GLN/Q/;s/GLU/E/;s/GLY/G/;s/HIS/H/;s/ILE/I/;s/LEU/L/;s/LYS/K/;s/MET/M/;s/PHE/F/;s/PRO/P/;s/SER/S/;s/THR/T/;s/TRP/W/;s/TYR/Y/;s/VAL/V/' | tr -d '\n')
gaps=$(printf -- '-%.0s' {1..49})
printf '>query\n%s\n>half\n%s\n>inserted\n%s\n>other\n%s\n' "$b2m" "${b2m:0:50}$gaps" "aaa$b2m" "aaE${b2m:1}" \
  > alignments/1BD2_B/bfd_uniclust_hits.a3m
printf '1bd2_B 1AAA_A\n\nbp_4cup_A\n' > clusters.txt
expect 3 "has no alignment" prepare build structures/bp_4CUP.cif.gz --alignments alignments -o none
expect 0 "1 rejected" prepare build structures --alignments alignments --clusters clusters.txt -o out
tsv rejected bp_4CUP.cif.gz "--single-sequence takes such chains"
expect 2 "is of other inputs or settings" prepare build structures --alignments alignments --single-sequence -o out
expect 0 "2 chains in 1 shard" prepare build structures --alignments alignments --single-sequence \
  --clusters clusters.txt -o out --overwrite
expect 0 "1 shards, 2 chains: all whole" prepare verify out
expect 0 '"chains": 2' prepare stats out --json
json=$(cat out.txt)
is "$(number "$json" clusters) $(number "$json" single_sequence) $(number "$json" in_no_cluster)" "2 1 0" "stats"
grep -A9 '"msa_rows"' out.txt | grep -q '"max": 3.0' || problem "rows: $(cat out.txt)"
expect 0 "alignment rows" prepare stats out
expect 0 "1 chains" prepare build structures --single-sequence --chains BP_4cup_A -o one
expect 3 "none of the inputs holds one of these chains" prepare build structures --single-sequence --chains 9xyz_A -o two

# The same bytes with any number of jobs.
expect 0 "" prepare build structures --alignments alignments --single-sequence --clusters clusters.txt -o again --jobs 1
cmp out/chains-00001-of-00001.h5 again/chains-00001-of-00001.h5 || problem "other bytes with one job"

# Templates: only those released 60 days before the chain or earlier.
mkdir -p mmcif late early alignments/chain_A
dated() { zcat "$pdb/bp_4CUP.cif.gz"; echo "_pdbx_audit_revision_history.revision_date $1"; }
dated 2014-04-02 > mmcif/4cup.cif
dated 2014-05-01 > late/chain.cif
dated 2014-06-02 > early/chain.cif
query=$(zcat "$pdb/bp_4CUP.cif.gz" | grep -A2 pdbx_seq_one_letter_code_can | tail -2 | tr -d ';\n')
left=$(printf -- '-%.0s' {1..20}) right=$(printf -- '-%.0s' {1..37})
printf '>query\n%s\n' "$query" > alignments/chain_A/uniref90_hits.a3m
printf '# STOCKHOLM 1.0\n\n#=GS 4cup_A/21-80 DE [subseq from] mol:protein length:117  X\n\n4cup_A/21-80 %s\n#=GC RF      %s\n//\n' \
  "$left${query:20:60}$right" "${query//?/x}" > alignments/chain_A/pdb_hits.sto
for kind in late early; do
  expect 0 "1 chains" prepare build $kind --alignments alignments --template-mmcif-dir mmcif -o $kind.out
  expect 0 "" prepare stats $kind.out --json
  [ $kind = late ] && stored=0.0 || stored=1.0
  grep -A7 '"templates"' out.txt | grep -qF "\"max\": $stored" || problem "templates of $kind: $(cat out.txt)"
  expect 0 "all whole" prepare verify $kind.out
done

# Predicted structures: residues below a pLDDT of 50 count as not seen.
zcat "$pdb/1BD2_B.pdb.gz" | grep ^ATOM |
  awk '{ printf "%s%6.2f%s\n", substr($0, 1, 60), (substr($0, 23, 4) + 0 > 79 ? 50 : 91), substr($0, 67) }' > predicted.pdb
expect 0 "1 chains" prepare build predicted.pdb --single-sequence --distillation -o distilled
expect 0 '"distillation": 1' prepare stats distilled --json
grep -A7 '"seen_percent"' out.txt | grep -qF '"max": 79.79' || problem "residues seen: $(cat out.txt)"

# Inputs that cannot be used, alone and among others.
mkdir bad
zcat "$pdb/bp_4CUP.cif.gz" | grep -Pv '^(ATOM|HETATM) ' > bad/noatoms.cif
printf 'HEADER    DNA\nSEQRES   1 A    2   DA  DT\n%s\n%s\nEND\n' \
  "ATOM      1  P    DA A   1      10.000  10.000  10.000  1.00 20.00           P" \
  "ATOM      2  P    DT A   2      15.000  10.000  10.000  1.00 20.00           P" > bad/dna.pdb
zcat "$pdb/bp_4CUP.cif.gz" | awk '/^ATOM/ { ++n; $6 = "DA"; $9 = n; $23 = "DA" }
  /^ATOM/ || /^_atom_site\./ || /^data_/ { print } /^data_/ { print "loop_" }' > bad/nucleic.cif
zcat "$pdb/bp_4CUP.cif.gz" | awk '{ print } /^ATOM/ { $NF = "2"; later[++n] = $0 }
  /^HETATM/ && !n { exit 1 } /^HETATM/ && !done { for (i = 1; i <= n; ++i) print later[i]; done = 1 }' > bad/models_2.cif
(echo "MODEL        1"; zcat "$pdb/1BD2_B.pdb.gz" | grep ^ATOM; echo ENDMDL; echo "MODEL        2"
  zcat "$pdb/3PWP_B.pdb.gz" | grep ^ATOM; echo ENDMDL) > bad/models.pdb
zcat "$pdb/1BD2_B.pdb.gz" | grep ^ATOM | awk 'substr($0, 23, 4) + 0 < 6' > bad/short.pdb
zcat "$pdb/1BD2_B.pdb.gz" | grep ^ATOM | awk '{ print substr($0, 1, 17) "ALA" substr($0, 21) }' > bad/alanine.pdb
head -c 3000 "$pdb/bp_4CUP.cif.gz" > bad/cut.cif.gz
cp bad/alanine.pdb bad/alanine.ent
for name in noatoms.cif nucleic.cif dna.pdb cut.cif.gz short.pdb; do
  expect 3 "no chain could be taken of the file" prepare build bad/$name --single-sequence -o "bad_$name"
done
rm -rf out
expect 0 "3 chains in 1 shard" prepare build bad --single-sequence -o out
tsv rejected dna.pdb "holds no protein chain"
tsv rejected nucleic.cif "holds no protein chain"
tsv rejected noatoms.cif "holds no protein chain"
tsv rejected cut.cif.gz "cut.cif.gz"
tsv rejected short.pdb "is too short: 5 residues"
tsv rejected alanine.ent "alanine.pdb is another file of this entry"
tsv note models.pdb "has several models; the first was taken"
tsv note models_2.cif "has several models; the first was taken"
tsv note alanine.ent "100 % of its residues are A"
tsv note alanine.ent "tells no resolution"
expect 0 '"one_residue_above_80_percent": 1' prepare stats out --json
expect 3 "nowhere: no such file" prepare build nowhere --single-sequence -o x
expect 3 "holds no structure" prepare build alignments --single-sequence -o x
expect 2 "no alignments: give --alignments" prepare build structures -o x
expect 2 "unknown flag '--single-sequenc'; did you mean '--single-sequence'?" prepare build structures --single-sequenc -o x
expect 2 "build, verify or stats" prepare
printf 'a_A b_B\nb_B\n' > clusters.txt
expect 3 "clusters.txt:2: 'b_B' stands in another cluster too (line 1)" prepare build structures \
  --single-sequence --clusters clusters.txt -o x
[ -e x ] && problem "a refused build left $(ls -A x)"

# Damage.
shard=out/chains-00001-of-00001.h5
cp $shard whole.h5
truncate -s $(($(stat -c %s whole.h5) / 2)) $shard
expect 3 "it is cut off" prepare stats out
expect 3 "1 of 1 shards are damaged: $shard: has " prepare verify out
sed 's/^format 1/format 2/' whole.h5 > $shard
expect 3 "$shard: is a shard of format 2, this program reads format 1" prepare stats out
expect 3 "is a shard of format 2" prepare verify out
cp whole.h5 $shard
printf '\377' | dd of=$shard bs=1 seek=$(($(stat -c %s whole.h5) / 3)) conv=notrunc 2> dd.txt
expect 3 "1 of 1 shards are damaged" prepare verify out
grep -qP "^damaged\t$shard\t" out.txt || problem "verify does not list it: $(cat out.txt)"
echo text > $shard
expect 3 "$shard: is no shard of a fastfold dataset" prepare stats $shard
expect 0 "building it again" prepare build bad --single-sequence -o out
cmp whole.h5 $shard || problem "a damaged shard was not made again"
expect 3 "holds no shard" prepare stats structures

# Killed at any moment and started again: the same files as without.
mkdir many
for i in $(seq 10 49); do cp "$pdb/1BD2_B.pdb.gz" many/1b$i.pdb.gz; cp "$pdb/bp_4CUP.cif.gz" many/4c$i.cif.gz; done
run_many() { timeout 120 "$program" prepare build many --single-sequence --shard-size 2 -q -o "$1"; }
start=$(date +%s%N)
run_many full || problem "the uninterrupted build failed"
took=$((($(date +%s%N) - start) / 1000))
is "$(ls full/*.h5 | wc -l)" 40 "shards"
interrupted=0
for round in 1 2 3 4 5 6; do
  rm -rf cut
  "$program" prepare build many --single-sequence --shard-size 2 -q -o cut & pid=$!
  wait_us=$(((RANDOM * 32768 + RANDOM) % took))
  sleep "$((wait_us / 1000000)).$(printf %06d $((wait_us % 1000000)))"
  kill -9 $pid 2> /dev/null && interrupted=$((interrupted + 1))
  wait $pid 2> /dev/null
  ls cut/*.h5 > before.txt 2> /dev/null
  [ -s before.txt ] && [ "$(wc -l < before.txt)" -lt 40 ] && expect 3 "is missing; run 'fastfold prepare build' again" prepare stats cut
  run_many cut || problem "round $round, killed after $wait_us us: going on failed"
  diff -r full cut > diff.txt || problem "round $round, killed after $wait_us us: $(cat diff.txt)"
done
[ $interrupted -gt 0 ] || problem "no round was interrupted"
rm full/chains-00007-of-00040.h5
expect 3 "shard 7 of 40 is missing" prepare stats full
expect 0 "39 of 40 shards are there already" prepare build many --single-sequence --shard-size 2 -o full
diff -r full cut > diff.txt || problem "a lost shard was not made again: $(cat diff.txt)"

finish
