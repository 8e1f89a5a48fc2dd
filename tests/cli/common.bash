# Shared by the scripts of tests/cli: runs the program and checks how it ends.
set -u
program=$(realpath "$1")
data=$(cd "$(dirname "${BASH_SOURCE[0]}")/../data" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

problem() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# expect CODE TEXT ARGS...: the program ends with CODE, one message that contains TEXT, on one line of
# standard error that begins with "fastfold: ". TEXT may be empty.
expect() {
  local code=$1 text=$2
  shift 2
  timeout 120 "$program" "$@" > out.txt 2> err.txt
  local got=$?
  [ "$got" -eq "$code" ] || problem "$*: exit $got, expected $code: $(cat err.txt)"
  if [ "$code" -ne 0 ]; then
    [ "$(wc -l < err.txt)" -eq 1 ] || problem "$*: not one line: $(cat err.txt)"
    grep -q '^fastfold: ' err.txt || problem "$*: no 'fastfold: ' message: $(cat err.txt)"
  fi
  if [ -n "$text" ]; then
    cat out.txt err.txt | grep -qF -- "$text" || problem "$*: does not say '$text': $(cat err.txt)"
  fi
}

# nothing_in FOLDER: no file was left there, temporary ones included.
nothing_in() {
  [ -z "$(find "$1" -type f 2> /dev/null)" ] || problem "left behind: $(find "$1" -type f)"
}

finish() {
  [ "$failures" -eq 0 ] || exit 1
  echo "all as expected"
}
