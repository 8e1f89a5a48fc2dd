# bench --comm on two ranks: its tables, that bandwidths follow from the bytes that were counted, and its timeline drawn.
source "$(dirname "$0")/common.bash"
command -v mpirun > /dev/null || { echo "SKIPPED: no mpirun"; exit 0; }
ranks=$(dirname "$data")/mpirun

expect 2 "needs several ranks" bench --comm
bash "$ranks" 2 "$program" bench > out.txt 2> err.txt && problem "bench ran on two ranks"
[ "$(grep -c '^fastfold: .*works with one rank' err.txt)" -eq 1 ] || problem "not told once: $(cat err.txt)"

bash "$ranks" 2 "$program" bench --comm --comm-largest 16KiB --preset demo --n-res 10 --n-seq 6 --repeat 1 \
  --threads 1 --json table.json > out.txt 2> err.txt || problem "bench --comm: $(cat out.txt err.txt)"
for name in all-gather reduce-scatter all-to-all all-reduce; do
  [ "$(grep -c "^$name " out.txt)" -eq 3 ] || problem "not three sizes of $name: $(cat out.txt)"
done
# One JSON object a line: NCCL-tests' bus bandwidth times the time is what was received.
tr -d ' \n' < table.json | grep -o '{"b[^{}]*"name"[^{}]*}' > rows
[ "$(wc -l < rows)" -eq 12 ] || problem "not 12 collectives: $(cat table.json)"
value() { grep -o "\"$1\":[-+.e0-9]*" <<< "$2" | cut -d: -f2; }
while IFS= read -r row; do
  awk -v bus="$(value bus_gb_per_s "$row")" -v ms="$(value ms "$row")" -v got="$(value received_bytes "$row")" \
    'BEGIN { want = bus * ms * 1e6; exit !(got > 0 && (want - got) ^ 2 < 1e-6 * got ^ 2) }' || problem "bandwidth and bytes: $row"
done < rows
# The block: nothing is received on one rank, on two twice as much in training as in a prediction.
tr -d ' \n' < table.json | grep -o '{"communication_ms[^{}]*}' > blocks
received() { value received_bytes "$(grep "\"pass\":\"$1\",\"ranks\":$2," blocks)"; }
[ "$(received 'forward' 1)" = 0.0 ] || problem "one rank received: $(cat blocks)"
awk -v f="$(received forward 2)" -v t="$(received 'forward+backward' 2)" 'BEGIN { exit !(f > 0 && t == 2 * f) }' ||
  problem "received by two ranks: $(cat blocks)"

if command -v python3 > /dev/null; then
  bash "$ranks" 2 "$program" bench --comm --comm-largest 1KiB --preset demo --n-res 10 --n-seq 6 --repeat 1 --threads 1 \
    --profile trace.json > out.txt 2> err.txt || problem "bench --comm --profile: $(cat out.txt err.txt)"
  "$(dirname "$0")/../../scripts/draw-timeline" -o picture.svg trace.json trace.rank1.json 2> err.txt || problem "draw-timeline: $(cat err.txt)"
  for text in "rank 0: computing" "rank 1: computing" "<title>wait: " "</svg>"; do
    grep -q "$text" picture.svg || problem "no '$text' in the picture"
  done
fi

finish
