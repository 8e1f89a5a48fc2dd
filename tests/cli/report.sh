# report.html in a headless Chromium, narrow and wide: drawn, without errors, overflow or network.
source "$(dirname "$0")/common.bash"
browser=$(command -v chromium || command -v google-chrome) || { echo "SKIPPED: no chromium on PATH"; exit 0; }

expect 0 "" init --preset demo --seed 1 -o params.npz
printf '>a title </script> <b>&\xc3\xa9\nMKTAYIAKQRQISFVKSHFSRQ\n' > q.fasta
printf '>q\nMKTAYIAKQRQISFVKSHFSRQ\n>h\nMKTAYIAKQRQISF--SHFSRQ\n' > q.a3m
"$program" predict q.fasta --msa q.a3m --params params.npz --num-recycle 0 --num-seeds 2 -o out -q 2> err.txt ||
  problem "predict: $(cat err.txt)"
page=$(find out -name report.html)
grep -q -e 'src="http' -e 'href="http' "$page" && problem "the page loads something"

for size in 390,844 1600,1000; do
  timeout 100 "$browser" --headless=new --no-sandbox --disable-gpu --user-data-dir="$work/profile" \
    --window-size=$size --virtual-time-budget=3000 --host-resolver-rules="MAP * ~NOTFOUND" \
    --enable-logging=stderr --dump-dom "file://$work/$page" > dom.html 2> browser.txt ||
    problem "$size: the browser failed: $(tail -3 browser.txt)"
  state=$(grep -o '<html[^>]*>' dom.html | head -1)
  for part in 'data-ready="1"' 'data-errors="0"' 'data-blank=""' 'data-overflow="0"'; do
    grep -qF "$part" <<< "$state" || problem "$size: not $part: $state"
  done
  grep -q CONSOLE browser.txt && problem "$size: console: $(grep CONSOLE browser.txt)"
  grep -q '<td>demo</td>' dom.html || problem "$size: no table of predictions"
  grep -q 'a title &lt;/script&gt;' dom.html || problem "$size: the title is not text"
done

finish
