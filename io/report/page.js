'use strict';
(() => {
const root = document.documentElement;
let errors = 0;
const fault = () => { root.dataset.errors = String(++errors); };
root.dataset.errors = '0';
addEventListener('error', fault);
addEventListener('unhandledrejection', fault);

const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const n = data.sequence.length;
let model = 0, selection = [];  // selection: ranges of residues, [from, to], from 0

for (const m of data.models) {
  const words = new Int16Array(bytes(m.backbone).buffer);
  m.ca = []; m.side = [];
  for (let i = 0; i < n; ++i) {
    const w = k => words[6 * i + k] * m.unit;
    const seen = words[6 * i] !== -32768;
    m.ca.push(seen ? [w(0), w(1), w(2)] : null);
    m.side.push(seen ? [w(3), w(4), w(5)] : null);
  }
  if (m.pae) m.paeData = bytes(m.pae.data);
}

// Small vectors.
const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const sub = (a, b) => add(a, b, -1);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const scaled = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
const unit = a => scaled(a, 1 / (Math.hypot(...a) || 1));
const colourOf = p => p > 90 ? [0, 83, 214] : p > 70 ? [101, 203, 243] : p > 50 ? [255, 219, 19] : [255, 125, 69];
const dark = () => matchMedia('(prefers-color-scheme: dark)').matches;
const style = name => getComputedStyle(root).getPropertyValue(name).trim();
const isSelected = i => selection.some(([a, b]) => i >= a && i <= b);

function fit(canvas) {
  const ratio = Math.min(devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
  const w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const c = canvas.getContext('2d');
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, box.width, box.height);
  return [c, box.width, box.height];
}

// Helices and strands from distances between CA atoms.
function secondary(ca) {
  const d = (i, k) => ca[i] && ca[i + k] ? Math.hypot(...sub(ca[i], ca[i + k])) : 0;
  const kind = new Array(n).fill('c');
  for (let i = 0; i + 4 < n; ++i)
    if (Math.abs(d(i, 2) - 5.5) < .6 && Math.abs(d(i, 3) - 5.3) < .9 && Math.abs(d(i, 4) - 6.3) < 1.2)
      for (let k = 0; k < 5; ++k) kind[i + k] = 'h';
  for (let i = 0; i + 3 < n; ++i)
    if (d(i, 2) > 6 && d(i, 2) < 7.4 && d(i, 3) > 9 && d(i, 3) < 11.2)
      for (let k = 0; k < 4; ++k) if (kind[i + k] === 'c') kind[i + k] = 's';
  for (let i = 0, j; i < n; i = j) {
    for (j = i; j < n && kind[j] === kind[i]; ++j);
    if (kind[i] === 's' && j - i < 3) kind.fill('c', i, j);
  }
  return kind;
}

// The ribbon as strips of quadrilaterals in model coordinates.
function ribbon(m) {
  if (m.ribbon) return m.ribbon;
  const kind = secondary(m.ca), steps = n > 3000 ? 2 : n > 1000 ? 3 : 6, strips = [];
  const width = i => kind[i] === 'h' ? 1.25 : kind[i] === 's' ? 1.1 : .28;
  const ends = i => kind[i] === 's' && (i + 1 >= n || kind[i + 1] !== 's');
  for (let from = 0; from < n; ++from) {
    if (!m.ca[from]) continue;
    let to = from;
    while (to + 1 < n && m.ca[to + 1] && Math.hypot(...sub(m.ca[to + 1], m.ca[to])) < 5) ++to;
    let last = null;
    const side = [];
    for (let i = from; i <= to; ++i) {
      let s = m.side[i];
      const ahead = unit(sub(m.ca[Math.min(i + 1, to)], m.ca[Math.max(i - 1, from)]));
      s = unit(sub(s, scaled(ahead, dot(s, ahead))));
      if (last && dot(s, last) < 0) s = scaled(s, -1);
      side.push(last = s);
    }
    const smoothed = i => {  // strands are flat: their zigzag is taken out
      if (kind[i] !== 's' || i === from || i === to) return m.ca[i];
      return add(scaled(m.ca[i], .5), scaled(add(m.ca[i - 1], m.ca[i + 1]), .25));
    };
    const strip = [];
    for (let i = from; i < to; ++i) {
      const p = [Math.max(i - 1, from), i, i + 1, Math.min(i + 2, to)].map(smoothed);
      for (let k = 0; k < steps; ++k) {
        const t = k / steps, t2 = t * t, t3 = t2 * t;
        const b = [-.5 * t3 + t2 - .5 * t, 1.5 * t3 - 2.5 * t2 + 1, -1.5 * t3 + 2 * t2 + .5 * t, .5 * t3 - .5 * t2];
        let x = [0, 0, 0];
        b.forEach((w, q) => { x = add(x, p[q], w); });
        const s = unit(add(scaled(side[i - from], 1 - t), side[i + 1 - from], t));
        let w = width(i) + (width(i + 1) - width(i)) * (kind[i] === kind[i + 1] ? 0 : t * t * (3 - 2 * t));
        if (i + 1 < n && ends(i + 1)) w = 1.9 * (1 - t) + .28 * t;
        strip.push({x, s, w, i: t < .5 ? i : i + 1});
      }
    }
    if (to > from) strip.push({x: m.ca[to], s: side[to - from], w: width(to), i: to});
    else strip.push({x: add(m.ca[to], [-.5, 0, 0]), s: [0, 1, 0], w: .5, i: to}, {x: add(m.ca[to], [.5, 0, 0]), s: [0, 1, 0], w: .5, i: to});
    strips.push(strip);
    from = to;
  }
  return m.ribbon = strips;
}

// View: rotation (rows), zoom. The first view looks along the thinnest axis.
let rotation, zoom;
function firstView(m) {
  const points = m.ca.filter(Boolean);
  const c = [[0, 0, 0], [0, 0, 0], [0, 0, 0]];
  for (const p of points) for (let a = 0; a < 3; ++a) for (let b = 0; b < 3; ++b) c[a][b] += p[a] * p[b];
  const times = v => c.map(row => dot(row, v));
  const longest = not => {
    let v = [.6, .5, .4];
    for (let k = 0; k < 60; ++k) {
      v = times(v);
      if (not) v = sub(v, scaled(not, dot(v, not)));
      if (Math.hypot(...v) < 1e-9) v = not ? cross(not, [.3, .5, .7]) : [1, 0, 0];
      v = unit(v);
    }
    return v;
  };
  const x = longest(), y = longest(x);
  rotation = [x, y, cross(x, y)];
  zoom = 1;
}
function turn(dx, dy) {
  const [sx, cx, sy, cy] = [Math.sin(dx), Math.cos(dx), Math.sin(dy), Math.cos(dy)];
  const [a, b, c] = rotation;
  const a1 = add(scaled(a, cx), c, sx), c1 = add(scaled(c, cx), a, -sx);
  rotation = [a1, add(scaled(b, cy), c1, sy), add(scaled(c1, cy), b, -sy)];
}

let spots = [];
function drawStructure() {
  const [c, w, h] = fit(byId('structure')), m = data.models[model];
  const reach = Math.max(4, ...m.ca.filter(Boolean).map(p => Math.hypot(...p))) + 2;
  const scale = .46 * Math.min(w, h) / reach * zoom * (w > h ? Math.min(w / h, 1.35) : 1);
  const back = dark() ? [27, 33, 40] : [255, 255, 255];
  const view = p => rotation.map(r => dot(r, p));
  const quads = [];
  for (const strip of ribbon(m)) {
    let before = null;
    for (const {x, s, w: half, i} of strip) {
      const p = view(x), q = scaled(view(s), half), now = {a: add(p, q), b: sub(p, q), i};
      if (before) {
        const normal = unit(cross(sub(now.b, before.a), sub(now.a, before.b)));
        quads.push({q: [before.a, before.b, now.b, now.a], z: before.a[2] + before.b[2] + now.a[2] + now.b[2], normal, i});
      }
      before = now;
    }
  }
  quads.sort((a, b) => a.z - b.z);
  c.lineJoin = c.lineCap = 'round';
  const any = selection.length > 0, thick = Math.max(1, .42 * scale);
  for (const {q, z, normal, i} of quads) {
    const light = .62 + .38 * Math.abs(normal[2] * .85 + normal[0] * .3 + normal[1] * .35);
    const fog = Math.max(0, Math.min(.55, .28 - z / (4 * reach) * .42));
    const chosen = any && !isSelected(i);
    const rgb = colourOf(m.plddt[i]).map((v, k) => {
      const lit = v * light * (1 - fog) + back[k] * fog;
      return Math.round(chosen ? lit * .22 + back[k] * .78 * .97 : lit);
    });
    c.fillStyle = c.strokeStyle = `rgb(${rgb})`;
    c.lineWidth = thick;
    c.beginPath();
    q.forEach((p, k) => c[k ? 'lineTo' : 'moveTo'](w / 2 + p[0] * scale, h / 2 - p[1] * scale));
    c.closePath();
    c.fill();
    c.stroke();
  }
  spots = [];
  m.ca.forEach((p, i) => { if (p) { const v = view(p); spots.push([w / 2 + v[0] * scale, h / 2 - v[1] * scale, v[2], i]); } });
}

function drawPae() {
  const m = data.models[model], box = byId('pae-box');
  box.hidden = !m.pae;
  if (!m.pae) {
    byId('pae-note').textContent = 'This model predicts no aligned error; the _ptm models do.';
    return;
  }
  const [c, w, h] = fit(byId('pae')), k = m.pae.n;
  if (!m.image) {
    m.image = document.createElement('canvas');
    m.image.width = m.image.height = k;
    const ic = m.image.getContext('2d'), pixels = ic.createImageData(k, k);
    const stops = [[0, 68, 27], [35, 139, 69], [116, 196, 118], [199, 233, 192], [247, 252, 245]];
    for (let p = 0; p < k * k; ++p) {
      const t = Math.min(3.999, m.paeData[p] / 255 * 4), f = Math.floor(t);
      for (let q = 0; q < 3; ++q) pixels.data[4 * p + q] = stops[f][q] + (stops[f + 1][q] - stops[f][q]) * (t - f);
      pixels.data[4 * p + 3] = 255;
    }
    ic.putImageData(pixels, 0, 0);
  }
  byId('pae-max').textContent = m.pae.max.toFixed(1);
  c.imageSmoothingEnabled = false;
  c.drawImage(m.image, 0, 0, w, h);
  if (selection.length) {
    c.strokeStyle = '#d81b60';
    c.lineWidth = 2;
    const [x, y] = [selection[0], selection[selection.length - 1]];
    c.strokeRect(x[0] / n * w, y[0] / n * h, (x[1] - x[0] + 1) / n * w, (y[1] - y[0] + 1) / n * h);
  }
}

function ticks(most) {
  const raw = most / 6, power = 10 ** Math.floor(Math.log10(Math.max(1, raw)));
  return Math.max(1, [1, 2, 5, 10].find(s => s * power >= raw) * power);
}

const edge = {l: 34, r: 8, t: 8, b: 22};
function drawPlddt() {
  const [c, w, h] = fit(byId('plddt')), m = data.models[model];
  const x = i => edge.l + (i + .5) / n * (w - edge.l - edge.r), y = v => edge.t + (1 - v / 100) * (h - edge.t - edge.b);
  for (const [low, high] of [[90, 100], [70, 90], [50, 70], [0, 50]]) {
    c.fillStyle = `rgba(${colourOf(high)},.13)`;
    c.fillRect(edge.l, y(high), w - edge.l - edge.r, y(low) - y(high));
  }
  c.fillStyle = 'rgba(216,27,96,.18)';
  for (const [a, b] of selection) c.fillRect(x(a - .5), edge.t, x(b + .5) - x(a - .5), h - edge.t - edge.b);
  c.fillStyle = style('--soft');
  c.font = '12px system-ui, sans-serif';
  c.textAlign = 'right';
  for (const v of [0, 50, 70, 90, 100]) c.fillText(v, edge.l - 6, y(v) + 4);
  c.textAlign = 'center';
  const step = ticks(n);
  for (let i = step; i <= n; i += step) c.fillText(i, x(i - 1), h - 6);
  data.models.forEach((other, k) => { if (k !== model) line(other, style('--line'), 1); });
  line(m, style('--ink'), 1.6);
  function line(of, colour, width) {
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.beginPath();
    of.plddt.forEach((v, i) => c[i ? 'lineTo' : 'moveTo'](x(i), y(v)));
    if (n === 1) c.arc(x(0), y(of.plddt[0]), 3, 0, 7);
    c.stroke();
  }
}

function drawAll() { drawStructure(); drawPae(); drawPlddt(); }
let asked = false;
function later() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; drawAll(); });
}

const tip = byId('tip');
function tell(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.min(innerWidth - tip.offsetWidth - 8, event.clientX + 14) + 'px';
  tip.style.top = Math.max(4, event.clientY - 32) + 'px';
}
const name = i => data.sequence[i] + (i + 1);

// Structure: pointers, wheel, keys.
{
  const canvas = byId('structure'), pointers = new Map();
  let spread = 0;
  canvas.addEventListener('pointerdown', e => { canvas.setPointerCapture(e.pointerId); pointers.set(e.pointerId, e); spread = 0; });
  for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, e => { pointers.delete(e.pointerId); spread = 0; });
  canvas.addEventListener('pointerleave', e => tell(e, ''));
  canvas.addEventListener('pointermove', e => {
    const before = pointers.get(e.pointerId);
    if (!before) {
      const box = canvas.getBoundingClientRect(), px = e.clientX - box.left, py = e.clientY - box.top;
      const near = spots.filter(s => Math.hypot(s[0] - px, s[1] - py) < 12).sort((a, b) => b[2] - a[2])[0];
      tell(e, near ? `${name(near[3])}, pLDDT ${data.models[model].plddt[near[3]].toFixed(1)}` : '');
      return;
    }
    if (pointers.size === 1) {
      turn((e.clientX - before.clientX) * .01, -(e.clientY - before.clientY) * .01);
    } else {
      pointers.set(e.pointerId, e);
      const [a, b] = [...pointers.values()], now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      if (spread) zoom = Math.min(20, Math.max(.3, zoom * now / spread));
      spread = now;
    }
    pointers.set(e.pointerId, e);
    later();
  });
  canvas.addEventListener('wheel', e => { e.preventDefault(); zoom = Math.min(20, Math.max(.3, zoom * Math.exp(-e.deltaY * .0015))); later(); }, {passive: false});
  canvas.addEventListener('keydown', e => {
    const act = {ArrowLeft: () => turn(-.12, 0), ArrowRight: () => turn(.12, 0), ArrowUp: () => turn(0, .12), ArrowDown: () => turn(0, -.12),
                 '+': () => { zoom = Math.min(20, zoom * 1.15); }, '-': () => { zoom = Math.max(.3, zoom / 1.15); }, r: () => firstView(data.models[model])}[e.key];
    if (!act) return;
    e.preventDefault();
    act();
    later();
  });
  byId('reset').addEventListener('click', () => { firstView(data.models[model]); selection = []; later(); });
}

// PAE: hover and selection of a rectangle.
{
  const canvas = byId('pae');
  let start = null;
  const at = e => {
    const box = canvas.getBoundingClientRect(), place = v => Math.min(n - 1, Math.max(0, Math.floor(v * n)));
    return [place((e.clientX - box.left) / box.width), place((e.clientY - box.top) / box.height)];
  };
  canvas.addEventListener('pointerdown', e => { start = at(e); canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener('pointermove', e => {
    const m = data.models[model], [x, y] = at(e);
    if (start) {
      const order = (a, b) => a < b ? [a, b] : [b, a];
      selection = [order(start[0], x), order(start[1], y)];
      later();
    }
    const cell = v => Math.min(m.pae.n - 1, Math.floor((v + .5) / n * m.pae.n));
    const error = m.paeData[cell(y) * m.pae.n + cell(x)] / 255 * m.pae.max;
    byId('pae-at').textContent = `aligned on ${name(y)}, error of ${name(x)}: ${error.toFixed(1)} Å`;
  });
  canvas.addEventListener('pointerup', e => {
    const [x, y] = at(e);
    if (start && x === start[0] && y === start[1]) selection = [];
    start = null;
    later();
  });
  canvas.addEventListener('pointercancel', () => { start = null; });
}

byId('plddt').addEventListener('pointermove', e => {
  const box = byId('plddt').getBoundingClientRect();
  const i = Math.floor((e.clientX - box.left - edge.l) / (box.width - edge.l - edge.r) * n);
  byId('plddt-at').textContent = i >= 0 && i < n ? `${name(i)}: ${data.models[model].plddt[i].toFixed(1)}` : '';
});

// Models: the list and the table.
const body = document.querySelector('#models tbody');
function choose(k) {
  model = k;
  byId('model').value = String(k);
  [...body.rows].forEach((row, i) => row.setAttribute('aria-selected', String(i === k)));
  later();
}
data.models.forEach((m, k) => {
  const option = new Option(`${k + 1}: ${m.name}, seed ${m.seed}`, String(k));
  byId('model').add(option);
  const row = body.insertRow();
  for (const value of [k + 1, m.name, m.seed, m.mean.toFixed(1), m.ptm === null ? '–' : m.ptm.toFixed(2), m.recycles]) row.insertCell().textContent = value;
  row.tabIndex = 0;
  row.addEventListener('click', () => choose(k));
  row.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(k); } });
});
byId('model').addEventListener('change', e => choose(Number(e.target.value)));

firstView(data.models[0]);
choose(0);
drawAll();
addEventListener('resize', later);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', later);

// What a test reads.
const blank = id => {
  const canvas = byId(id);
  if (!canvas.offsetParent) return false;
  const p = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  for (let k = 3; k < p.length; k += 4) if (p[k]) return false;
  return true;
};
root.dataset.blank = ['structure', 'pae', 'plddt'].filter(blank).join(' ');
root.dataset.overflow = String(Math.max(0, root.scrollWidth - innerWidth));
root.dataset.ready = '1';
})();
