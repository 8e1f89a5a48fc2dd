# bench: a row for every module and for the whole, in JSON too, and --rows.
source "$(dirname "$0")/common.bash"
small=(--preset demo --blocks 1 --n-res 8 --n-seq 4 --n-extra 4 --repeat 1 --threads 1)
expect 0 "whole pass" bench "${small[@]}" --json forward.json
expect 0 "keeps 3 of 3 blocks for the backward; predicted peak of tensors" bench "${small[@]}" --training --json training.json
grep -q '"predicted_peak_mib"' training.json || problem "no predicted peak: $(cat training.json)"
expect 0 "keeps 0 of 3 blocks" bench "${small[@]}" --training --recompute blocks --rows "training step"
expect 2 "--recompute is 'all', expected auto, blocks, none" bench "${small[@]}" --training --recompute all
for row in "row attention" "triangle attention core" "layer norm" "residual and dropout" "pair embedding" block "extra: outer product mean" "whole pass"; do
  for file in forward training; do
    grep -q "\"name\": \"$row\"" $file.json || problem "$file: no row '$row': $(cat $file.json)"
  done
done
grep -q '"backward_ms"' training.json || problem "no backward: $(cat training.json)"
grep -q '"backward_ms"' forward.json && problem "a backward of the forward: $(cat forward.json)"
expect 0 "block" bench "${small[@]}" --rows block,optimizer --json some.json
[ "$(grep -c '"name"' some.json)" -eq 1 ] || problem "--rows: $(cat some.json)"
expect 2 "none of the table's rows" bench "${small[@]}" --rows blocks
finish
