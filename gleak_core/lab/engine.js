/* The lab's engine: tapes on kernels, torch's random numbers, and the descents. No page and no
   network in here: it runs in a worker, in a page, or in a test. */
'use strict';

/* --- torch's random numbers on a CPU, bit for bit: weights need no file --------------------------- */

function mersenne(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;
  return () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11; y ^= (y << 7) & 0x9d2c5680; y ^= (y << 15) & 0xefc60000; y ^= y >>> 18;
    return y >>> 0;
  };
}

/* torch.empty(n, dtype=float32).uniform_(low, high, generator=torch.Generator().manual_seed(seed)) */
function uniforms(seed) {
  const next = mersenne(seed);
  return (n, low, high) => {
    const span = Math.fround(high - low), from = Math.fround(low);
    return Float64Array.from({ length: n }, () =>
      Math.fround(Math.fround(Math.fround((next() & 0xffffff) / 16777216) * span) + from));
  };
}

function normals(seed) { /* Box and Muller's: not torch's, only as good */
  const next = mersenne(seed), u = () => (next() + 0.5) / 4294967296;
  return n => Float64Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(u())) * Math.cos(2 * Math.PI * u()));
}

/* --- kernels: compiled ones, or the same in plain JavaScript --------------------------------------- */

/* All memory is asked for at once: when it grew, every view of it would be lost. */
async function compiled(bytes, megabytes = 64) {
  const { instance } = await WebAssembly.instantiate(bytes), { exports } = instance, { memory } = exports;
  let top = (exports.__heap_base.value + 15) & ~15;
  memory.grow(16 * megabytes);
  const kernels = {
    name: 'WebAssembly',
    alloc(n) {
      const at = top;
      top = (top + 8 * n + 15) & ~15;
      if (top > memory.buffer.byteLength) throw new Error('the attack needs more memory than the lab has: take fewer pictures');
      return new Float64Array(memory.buffer, at, n);
    },
    mark: () => top,
    release(mark) { top = mark; },
    bind(step, o, of, n, scratch) {
      const call = exports['k_' + step.op], places = [o, ...of].map(a => a.byteOffset);
      if (!call) throw new Error(`there is no kernel for ${step.op}`);
      const numbers = argumentsOf(step, n, places.length, scratch && scratch.byteOffset);
      const all = [...places, ...numbers];
      return () => call(...all);
    },
    dot: (a, b) => exports.dot(a.byteOffset, b.byteOffset, a.length),
    axpy: (y, m, x) => exports.axpy(y.byteOffset, m, x.byteOffset, y.length),
  };
  return kernels;
}

/* What follows the places of output and inputs: see kernels.c. */
function argumentsOf(step, n, places, scratch) {
  if (step.op === 'copy') return [...step.d, ...step.s, step.f];
  if (step.op === 'place') return [n, ...step.d, ...step.s, step.f];
  if (step.op === 'mm') return [...step.d, ...step.s];
  if (step.d) return step.d;
  if (step.g) return [...(step.op === 'conv' && places === 3 ? [0] : []), scratch, ...step.g];
  return [n, ...['v', 'm', 'c'].filter(k => k in step).map(k => step[k])];
}

const each = f => (step, n) => (o, a, b) => { for (let i = 0; i < n; i++) o[i] = f(a[i], b && b[i], step); };
const byRow = f => ({ d: [rows, n] }) => (o, a, b) => { for (let r = 0; r < rows; r++) f(o, a, b, r * n, n); };

function strided({ d, s, f }, visit) {
  let at = 0;
  for (let i = 0; i < d[0]; i++) for (let j = 0; j < d[1]; j++) for (let k = 0; k < d[2]; k++) for (let l = 0; l < d[3]; l++)
    visit(at++, f + i * s[0] + j * s[1] + k * s[2] + l * s[3]);
}

function windows({ g: [n, ci, hi, wi, co, ho, wo, kh, kw, s, p] }, visit) {
  for (let t = 0; t < n; t++) for (let m = 0; m < co; m++) for (let y = 0; y < ho; y++) for (let z = 0; z < wo; z++) {
    const out = ((t * co + m) * ho + y) * wo + z;
    for (let c = 0; c < ci; c++) for (let i = 0; i < kh; i++) {
      const row = y * s + i - p;
      if (row < 0 || row >= hi) continue;
      const first = Math.max(0, p - z * s), last = Math.min(kw, wi + p - z * s);
      const from = ((t * ci + c) * hi + row) * wi + z * s - p, weight = ((m * ci + c) * kh + i) * kw;
      for (let j = first; j < last; j++) visit(out, from + j, weight + j);
    }
  }
}

const PLAIN = {
  fill: step => o => { o.fill(step.v); },
  add: each((a, b) => a + b), sub: each((a, b) => a - b), mul: each((a, b) => a * b), div: each((a, b) => a / b),
  affine: each((a, _, { m, c }) => m * a + c),
  abs: each(Math.abs), sgn: each(a => (a > 0) - (a < 0)), sqrt: each(Math.sqrt), exp: each(Math.exp),
  sigmoid: each(a => 1 / (1 + Math.exp(-a))), sigmoid_back: each((a, y) => a * y * (1 - y)),
  copy: step => (o, a) => strided(step, (i, at) => { o[i] = a[at]; }),
  place: step => (o, a) => { o.fill(0); strided(step, (i, at) => { o[at] = a[i]; }); },
  sum: ({ d: [before, many, after] }) => (o, a) => {
    for (let i = 0; i < before; i++) for (let j = 0; j < after; j++) {
      let sum = 0;
      for (let k = 0; k < many; k++) sum += a[(i * many + k) * after + j];
      o[i * after + j] = sum;
    }
  },
  softmax: byRow((o, a, _, r, n) => {
    const e = a.slice(r, r + n), most = Math.max(...e), sum = e.reduce((t, v) => t + Math.exp(v - most), 0);
    for (let i = 0; i < n; i++) o[r + i] = Math.exp(e[i] - most) / sum;
  }),
  softmax_back: byRow((o, a, y, r, n) => {
    let sum = 0;
    for (let i = r; i < r + n; i++) sum += a[i] * y[i];
    for (let i = r; i < r + n; i++) o[i] = y[i] * (a[i] - sum);
  }),
  log_softmax: byRow((o, a, _, r, n) => {
    const e = a.slice(r, r + n), most = Math.max(...e), sum = most + Math.log(e.reduce((t, v) => t + Math.exp(v - most), 0));
    for (let i = 0; i < n; i++) o[r + i] = e[i] - sum;
  }),
  log_softmax_back: byRow((o, a, y, r, n) => {
    let sum = 0;
    for (let i = r; i < r + n; i++) sum += a[i];
    for (let i = r; i < r + n; i++) o[i] = a[i] - Math.exp(y[i]) * sum;
  }),
  mm: ({ d: [m, k, n], s: [a0, a1, b0, b1] }) => (o, a, b) => {
    for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += a[i * a0 + l * a1] * b[l * b0 + j * b1];
      o[i * n + j] = sum;
    }
  },
  conv: step => (o, x, w, bias) => {
    const [, , , , co, ho, wo] = step.g;
    if (bias) for (let i = 0; i < o.length; i++) o[i] = bias[Math.floor(i / (ho * wo)) % co]; else o.fill(0);
    windows(step, (out, at, k) => { o[out] += x[at] * w[k]; });
  },
  conv_input: step => (o, g, w) => { o.fill(0); windows(step, (out, at, k) => { o[at] += g[out] * w[k]; }); },
  conv_weight: step => (o, x, g) => { o.fill(0); windows(step, (out, at, k) => { o[k] += g[out] * x[at]; }); },
};

function plain() {
  return {
    name: 'JavaScript',
    alloc: n => new Float64Array(n),
    mark: () => 0,
    release() {},
    bind(step, o, of, n) {
      const run = PLAIN[step.op](step, n), [a, b, c] = of;
      return () => run(o, a, b, c);
    },
    dot(a, b) { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; },
    axpy(y, m, x) { for (let i = 0; i < y.length; i++) y[i] += m * x[i]; },
  };
}

/* --- a tape, ready to run --------------------------------------------------------------------------- */

const columnsOf = tape => Math.max(1, ...tape.steps.filter(s => s.g).map(({ g }) => g[1] * g[7] * g[8] * g[5] * g[6]));

function load(tape, kernels) {
  const buffers = tape.sizes.map(n => kernels.alloc(n)), scratch = kernels.alloc(columnsOf(tape));
  const program = tape.steps.map(s => kernels.bind(s, buffers[s.o], s.i.map(k => buffers[k]), tape.sizes[s.o], scratch));
  const inputs = Object.fromEntries(Object.entries(tape.inputs).map(([name, k]) => [name, buffers[k]]));
  const outputs = tape.outputs.map(k => buffers[k]);
  return { inputs, outputs, run() { for (const one of program) one(); return outputs; } };
}

/* --- descents: an objective has x, slope and value(), which reads the one and writes the other ------- */

class LBFGS {
  /* `search`: strong Wolfe (Nocedal & Wright 2006, ch. 3), or none, as DLG was published. */
  constructor(kernels, objective, { history = 100, search = true, rate = 1 } = {}) {
    Object.assign(this, { kernels, objective, search, rate, most: history });
    const n = objective.x.length, vector = () => kernels.alloc(n);
    for (const name of ['way', 'slope', 'before', 'from', 'change', 'one', 'two', 'three']) this[name] = vector();
    this.moves = Array.from({ length: history }, vector);
    this.changes = Array.from({ length: history }, vector);
    this.reset();
  }

  reset() { Object.assign(this, { kept: 0, head: 0, pairs: [], scale: 1, steps: 0, evaluations: 0, loss: NaN, stalled: false }); }

  value(length) { /* at `from + length · way` */
    const { objective, kernels, from, way } = this;
    objective.x.set(from);
    kernels.axpy(objective.x, length, way);
    this.evaluations++;
    return objective.value();
  }

  /* One iteration; false when there is no way down any more, or none that is finite. */
  iterate() {
    const { objective, kernels, way, slope, before, from, most } = this;
    if (!this.evaluations) {
      this.evaluations++;
      this.loss = objective.value();
      slope.set(objective.slope);
    }
    if (this.steps) this.remember();
    for (let i = 0; i < way.length; i++) way[i] = -slope[i];
    const place = k => (this.head - 1 - k + 2 * most) % most, weights = [];
    for (let k = 0; k < this.kept; k++) {
      const at = place(k);
      weights[k] = kernels.dot(this.moves[at], way) * this.pairs[at];
      kernels.axpy(way, -weights[k], this.changes[at]);
    }
    for (let i = 0; i < way.length; i++) way[i] *= this.scale;
    for (let k = this.kept - 1; k >= 0; k--) {
      const at = place(k);
      kernels.axpy(way, weights[k] - kernels.dot(this.changes[at], way) * this.pairs[at], this.moves[at]);
    }
    const down = kernels.dot(slope, way);
    if (!(down < -1e-20)) { this.stalled = true; return false; }
    before.set(slope);
    from.set(objective.x);
    let first = this.rate;
    if (!this.steps) first *= Math.min(1, 1 / slope.reduce((sum, v) => sum + Math.abs(v), 0));
    this.steps++;
    if (this.search) this.length = this.wolfe(first, down);
    else {
      this.length = first;
      this.loss = this.value(first);
      slope.set(objective.slope);
    }
    return Number.isFinite(this.loss);
  }

  remember() {
    const { kernels, way, slope, before, change, head, length } = this;
    for (let i = 0; i < way.length; i++) change[i] = slope[i] - before[i];
    const bend = kernels.dot(change, way) * length;
    if (!(bend > 1e-16 * kernels.dot(change, change))) return; /* no curvature, or a wrong one */
    this.changes[head].set(change);
    const move = this.moves[head];
    for (let i = 0; i < way.length; i++) move[i] = way[i] * length;
    this.pairs[head] = 1 / bend;
    this.scale = bend / kernels.dot(change, change);
    this.head = (head + 1) % this.most;
    this.kept = Math.min(this.kept + 1, this.most);
  }

  wolfe(length, down) {
    const { objective, kernels, way, slope, before } = this, start = this.loss, spare = [this.one, this.two, this.three];
    const at = t => {
      const f = this.value(t), buffer = spare.pop();
      buffer.set(objective.slope);
      return { t, f, g: kernels.dot(buffer, way), buffer };
    };
    const free = point => { if (point.buffer !== before) spare.push(point.buffer); };
    const enough = p => p.f <= start + 1e-4 * p.t * down, flat = p => Math.abs(p.g) <= -0.9 * down;
    let low = { t: 0, f: start, g: down, buffer: before }, high = null, here = at(length), tries = 0;
    for (;;) { /* go on until the minimum lies between two points */
      if (!enough(here) || (tries && here.f >= low.f) || !Number.isFinite(here.f)) { high = here; break; }
      if (flat(here) || tries >= 25) { free(low); low = here; break; }
      if (here.g >= 0) { high = low; low = here; break; }
      const next = cubic(low, here, here.t + 0.01 * (here.t - low.t), here.t * 10);
      free(low);
      low = here;
      here = at(next);
      tries++;
    }
    while (high && tries++ < 25) { /* and then between two nearer ones */
      const width = Math.abs(high.t - low.t), least = Math.min(low.t, high.t);
      if (!(width > 1e-16)) break;
      let t = Number.isFinite(high.f) ? cubic(low, high, least, least + width) : least + width / 2;
      t = Math.min(Math.max(t, least + 0.1 * width), least + 0.9 * width);
      here = at(t);
      if (!enough(here) || here.f >= low.f) { free(high); high = here; continue; }
      if (flat(here)) { free(low); low = here; break; }
      if (here.g * (high.t - low.t) >= 0) { free(high); high = low; } else free(low);
      low = here;
    }
    this.loss = low.f;
    slope.set(low.buffer);
    objective.x.set(this.from);
    kernels.axpy(objective.x, low.t, way);
    if (low.t === 0) this.stalled = true;
    return low.t;
  }
}

function cubic(p, q, least, most) { /* where the cubic through two values and slopes is lowest */
  const a = p.g + q.g - 3 * (p.f - q.f) / (p.t - q.t), square = a * a - p.g * q.g;
  if (!(square >= 0)) return (least + most) / 2;
  const root = Math.sqrt(square) * (p.t <= q.t ? 1 : -1);
  const t = q.t - (q.t - p.t) * ((q.g + root - a) / (q.g - p.g + 2 * root));
  return Number.isFinite(t) ? Math.min(Math.max(t, least), most) : (least + most) / 2;
}

class Adam {
  constructor(kernels, objective, { rate = 0.05 } = {}) {
    Object.assign(this, { objective, rate, mean: new Float64Array(objective.x.length), spread: new Float64Array(objective.x.length) });
    this.reset();
  }

  reset() { this.mean.fill(0); this.spread.fill(0); Object.assign(this, { steps: 0, evaluations: 0, loss: NaN, stalled: false }); }

  iterate() {
    const { objective: { x, slope }, mean, spread, rate } = this;
    this.loss = this.objective.value();
    this.evaluations++;
    const k = ++this.steps, one = 1 - 0.9 ** k, two = 1 - 0.999 ** k;
    for (let i = 0; i < x.length; i++) {
      mean[i] += 0.1 * (slope[i] - mean[i]);
      spread[i] += 0.001 * (slope[i] * slope[i] - spread[i]);
      x[i] -= rate * (mean[i] / one) / (Math.sqrt(spread[i] / two) + 1e-8);
    }
    return Number.isFinite(this.loss);
  }
}
