# evaluate: pairs and folders, as a table and as JSON; against TMscore and TMalign where they are.
source "$(dirname "$0")/common.bash"
pdb=$data/evaluate

# row FILE NAME: the row's numbers with single blanks.
row() { grep "^$2 " "$1" | tr -s ' ' | cut -d' ' -f2-; }
is() { [ "$1" = "$2" ] || problem "$3: '$1', expected '$2'"; }

# A chain against the entry that it is from; side chains have other alternate locations.
expect 0 "" evaluate "$pdb/4CUP_A.pdb.gz" "$pdb/bp_4CUP.cif.gz"
is "$(row out.txt 4CUP_A | cut -d' ' -f1-3,5-)" "115 1.0000 1.0000 1.0000 1.0000 1.0000 0.000 0.000" "4CUP"

# Beta-2 microglobulin of two entries, one with a residue more before it: TMalign 20190822 finds the same
# pairs, and its TM-score is the best of the superpositions that TMscore tries.
expect 0 "" evaluate "$pdb/1BD2_B.pdb.gz" "$pdb/3PWP_B.pdb.gz"
is "$(row out.txt 1BD2_B)" "99 0.9900 0.9760 0.8976 0.9900 0.9625 0.9803 0.365 0.276" "two crystals"
zcat "$pdb/1BD2_B.pdb.gz" > b.pdb
zcat "$pdb/3PWP_B.pdb.gz" > reference.pdb
# The same numbers for the same residues, as TMscore wants them.
awk '{ if (/^ATOM/) $0 = substr($0, 1, 22) sprintf("%4d", substr($0, 23, 4) + 1) substr($0, 27); print }' b.pdb > shifted.pdb
if command -v TMscore > scores.txt; then
  TMscore shifted.pdb reference.pdb > scores.txt
  want=$(awk '/^GDT-TS-score=/ { ts = $2 } /^GDT-HA-score=/ { ha = $2 } /^TM-score    =/ { tm = $3 } END { print ts, ha, tm }' scores.txt)
  is "$(row out.txt 1BD2_B | cut -d' ' -f5-7)" "$want" "TMscore"
fi

# Other numbers and missing residues, on either side.
zcat "$pdb/4CUP_A.pdb.gz" | grep -v "^ANISOU" > whole.pdb
awk '/^ATOM/ { n = substr($0, 23, 4) + 0; if (n > 30 && n < 51) next
               $0 = substr($0, 1, 22) sprintf("%4d", n + (n > 50 ? 480 : 500)) substr($0, 27) } { print }' whole.pdb > gap.pdb
expect 0 "" evaluate whole.pdb gap.pdb
is "$(row out.txt whole)" "95 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 0.000 0.000" "reference lacks residues"
expect 0 "" evaluate gap.pdb whole.pdb
is "$(row out.txt gap | cut -d' ' -f1-2,5-6,8-)" "95 0.8261 0.8261 0.8261 0.000 0.000" "prediction lacks residues"
grep '^ATOM' whole.pdb | awk 'substr($0, 23, 4) + 0 > 60 { $0 = substr($0, 1, 21) "B" substr($0, 23) } { print }' > fragment.pdb
expect 0 "" evaluate --chain B whole.pdb fragment.pdb --json
for part in '"reference_chain": "B"' '"residues": 55' '"coverage": 1.0' '"identity": 1.0'; do
  grep -qF "$part" out.txt || problem "a chain of the reference: not $part: $(cat out.txt)"
done
expect 3 "has no protein chain 'Z', its chains are A, B" evaluate --chain Z whole.pdb fragment.pdb

# Folders: what predict writes, ColabFold's names, a damaged file, and structures that have no partner.
mkdir -p predicted/whole predicted/other references
cp whole.pdb predicted/whole/ranked_000.pdb
cp shifted.pdb predicted/b2m_unrelaxed_rank_001_alphafold2_ptm_model_1_seed_000.pdb
cp whole.pdb predicted/b2m_unrelaxed_rank_002_alphafold2_ptm_model_2_seed_000.pdb
cp whole.pdb references/whole.pdb
cp reference.pdb references/b2m.ent
expect 0 "" evaluate predicted references
is "$(row out.txt mean)" "0.9950 0.9880 0.9488 0.9950 0.9812 0.9902 0.183 0.138" "mean of two"
[ -s err.txt ] && problem "folders: says $(cat err.txt)"
head -c 3000 "$pdb/bp_4CUP.cif.gz" > predicted/cut.cif.gz
cp whole.pdb references/cut.pdb
expect 5 "predicted/cut.cif.gz" evaluate predicted references
is "$(row out.txt cut)" "failed" "a damaged file"
is "$(row out.txt whole | cut -d' ' -f7)" "1.0000" "its neighbour"
expect 5 '"error": "predicted/cut.cif.gz' evaluate predicted references --json
rm references/cut.pdb
expect 0 "references: no reference for 1 predictions: cut" evaluate predicted references

# Refusals.
expect 3 "nowhere.pdb" evaluate nowhere.pdb whole.pdb
expect 3 "predicted/cut.cif.gz" evaluate whole.pdb predicted/cut.cif.gz
expect 2 "takes two files or two folders" evaluate predicted whole.pdb
expect 3 "holds no structure" evaluate predicted "$work/predicted/other"
mkdir alone && cp whole.pdb alone/other.pdb
expect 3 "no two structures have the same name" evaluate alone references
grep -v ' CA ' whole.pdb > without.pdb
expect 3 "no residue has a C-alpha atom in both" evaluate without.pdb whole.pdb
expect 2 "REFERENCE" evaluate whole.pdb
expect 2 "--jsn" evaluate --jsn whole.pdb whole.pdb
timeout 20 "$program" evaluate b.pdb whole.pdb > out.txt 2> err.txt
grep -q "are these the same protein?" err.txt || problem "no warning of unrelated proteins: $(cat err.txt)"

finish
