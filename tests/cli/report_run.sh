# fastfold report: a run's curves in a headless Chromium, narrow and wide, light and dark.
source "$(dirname "$0")/common.bash"

expect 3 "missing/metrics.jsonl: cannot open it" report missing
mkdir run empty
echo 'no record' > empty/metrics.jsonl
expect 3 "holds no record" report empty
nothing_in empty/report.html
for step in $(seq 1 2000); do
  echo "{\"kind\":\"train\",\"step\":$step,\"loss/total\":$((4000 - step)).5,\"loss/fape\":0.$step,\"optim/lr\":1e-3,\"optim/clip_rate\":null,\"</script><b>\":1,\"run/samples\":$step}"
done > run/metrics.jsonl
echo '{"kind":"validation","step":2000,"val/lddt_ca":0.9,"val/tm":0.8}' >> run/metrics.jsonl
printf '\xff not a record\n{"kind":"tr' >> run/metrics.jsonl
expect 0 "run/report.html" report run
expect 0 "" report run -o page.html
cmp -s run/report.html page.html || problem "two reports of one run differ"
grep -q -e 'src="http' -e 'href="http' page.html && problem "the page loads something"
[ "$(wc -c < page.html)" -lt 2000000 ] || problem "a large page"

browser=$(command -v chromium || command -v google-chrome) || {
  finish
  echo "SKIPPED: no chromium on PATH"
  exit 0
}
for look in 390,844 1600,1000 1600,1000,dark; do
  IFS=, read -r width height dark <<< "$look"
  timeout 100 "$browser" --headless=new --no-sandbox --disable-gpu --user-data-dir="$work/profile" \
    --window-size="$width,$height" ${dark:+--blink-settings=preferredColorScheme=0} \
    --virtual-time-budget=3000 --host-resolver-rules="MAP * ~NOTFOUND" \
    --enable-logging=stderr --dump-dom "file://$work/page.html" > dom.html 2> browser.txt ||
    problem "$look: the browser failed: $(tail -3 browser.txt)"
  state=$(grep -o '<html[^>]*>' dom.html | head -1)
  for part in 'data-ready="1"' 'data-errors="0"' 'data-blank="0"' 'data-overflow="0"' 'data-charts="5"'; do
    grep -qF "$part" <<< "$state" || problem "$look: not $part: $state"
  done
  grep -q CONSOLE browser.txt && problem "$look: console: $(grep CONSOLE browser.txt)"
  grep -qF '<b>2</b>lines of the log' dom.html || problem "$look: bad lines are not counted"
done

finish
