# SIGINT and SIGTERM in the middle: one line, 130 and 143, nothing half-written.
source "$(dirname "$0")/common.bash"

"$program" init --preset demo --seed 1 -o params.npz
{ echo ">q"; for _ in $(seq 16); do printf MKTAYIAKQRQISFVKSHFS; done; echo; } > q.fasta
interrupt() { # interrupt SIGNAL CODE
  mkdir out
  # Job control gives the child its own SIGINT disposition.
  set -m
  "$program" predict q.fasta --params params.npz -o out -q --num-recycle 100 > out.txt 2> err.txt &
  local pid=$!
  set +m
  sleep 2
  kill -"$1" $pid || problem "$1: the program had ended: $(cat err.txt)"
  wait $pid
  local got=$?
  [ "$got" -eq "$2" ] || problem "$1: exit $got, expected $2: $(cat err.txt)"
  [ "$(wc -l < err.txt)" -eq 1 ] || problem "$1: not one line: $(cat err.txt)"
  grep -q "^fastfold: .*stopping" err.txt || problem "$1: $(cat err.txt)"
  nothing_in out
  rm -rf out
}
interrupt INT 130
interrupt TERM 143

finish
