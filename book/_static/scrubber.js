/* The comparison viewer: makes one of every `figure.gleak-scrubber` (gleak_core/scrubber.py packs them).
   It asks for nothing but what the page holds. If anything fails, the filmstrip stays. */
(() => {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const MEASURES = {
    psnr: { title: "PSNR", axis: "PSNR in dB", say: v => `${v.toFixed(1)} dB` },
    mse: { title: "MSE", axis: "MSE", log: true, say: small },
    loss: { title: "gradient distance", axis: "gradient distance", log: true, say: small },
  };
  const HEIGHT = 190, TOP = 10, BOTTOM = 42, LEFT = 78, RIGHT = 10; // LEFT, RIGHT: the slider's ends, see the CSS
  const PAUSE = 160; // ms from frame to frame
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  function small(value) {
    return value === 0 || value >= 0.001 && value < 10000 ? String(+value.toPrecision(2)) : value.toExponential(1);
  }

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function draw(tag, attributes, text = "") {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  }

  function select(label, change) {
    const control = make("select", { onchange: () => change(control.value) });
    return [make("label", { className: "gs-choice" }, make("span", { textContent: label }), control), control];
  }

  function fill(control, options, chosen) {
    control.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
    control.value = chosen;
  }

  async function load(packed) {
    const image = new Image();
    image.src = `data:image/png;base64,${packed.sheet}`;
    await image.decode();
    return Object.assign(packed, { image });
  }

  /** A picture of the viewer: a canvas of the tile's own size, which the style sheet enlarges. */
  class Frame {
    constructor(film) {
      this.film = film;
      this.canvas = make("canvas", { width: film.width, height: film.height });
      this.canvas.setAttribute("role", "img");
      this.badge = make("span", { className: "gs-badge", textContent: "diverged", hidden: true });
      this.element = make("div", { className: "gs-frame" }, this.canvas, this.badge);
    }

    show(packed, tile, words, broken = false) {
      const { width, height } = this.film;
      const pen = this.canvas.getContext("2d");
      for (let y = 0; y < height; y++) // a row of the sheet is a tile
        pen.drawImage(packed.image, y * width, tile, width, 1, 0, y, width, 1);
      this.canvas.setAttribute("aria-label", words);
      this.badge.hidden = !broken;
    }
  }

  /** One of the two sides: what is chosen for it, its picture and its numbers. */
  class Side {
    constructor(viewer, where, run) {
      this.viewer = viewer;
      this.where = where;
      const runs = viewer.film.runs;
      const [attack, attacks] = select(`${where} attack`, name => this.attack(name));
      const [start, starts] = select(`${where} start`, index => this.choose(Number(index)));
      this.attacks = attacks;
      this.starts = starts;
      start.hidden = runs.every(other => !other.start);
      fill(attacks, [...new Set(runs.map(other => other.attack))].map(name => [name, name]), runs[run].attack);
      this.frame = new Frame(viewer.film);
      this.values = Object.fromEntries(Object.keys(MEASURES).map(name => [name, make("dd")]));
      this.note = make("p", { className: "gs-note" });
      const rows = Object.entries(MEASURES).flatMap(([name, m]) => [make("dt", { textContent: m.title }), this.values[name]]);
      const side = `gs-${where.toLowerCase()}`;
      this.controls = make("div", { className: `gs-controls ${side}` }, attack, start);
      this.picture = make("div", { className: `gs-picture ${side}` }, this.frame.element);
      this.reading = make("div", { className: `gs-reading ${side}` }, make("dl", {}, ...rows), this.note);
      this.set(run);
    }

    set(index) {
      const runs = this.viewer.film.runs;
      this.index = index;
      this.run = runs[index];
      this.name = [this.run.attack, this.run.start].filter(Boolean).join(", ");
      const own = [...runs.entries()].filter(([, run]) => run.attack === this.run.attack);
      fill(this.starts, own.map(([i, run]) => [i, run.start || "–"]), index);
    }

    /** Change the attack, and keep the start if the other attack has it too. */
    attack(name) {
      const own = [...this.viewer.film.runs.entries()].filter(([, run]) => run.attack === name);
      const [index] = own.find(([, run]) => run.start === this.run.start) ?? own[0];
      this.choose(index);
    }

    choose(index) {
      this.set(index);
      this.viewer.show();
    }

    value(measure) {
      return this.run[measure][this.viewer.image][this.viewer.at];
    }

    show() {
      const { image, at, film } = this.viewer, step = film.steps[at];
      const broken = this.value("psnr") === null;
      this.frame.show(this.run, this.run.tiles[image][at], `${film.images[image]}, ${this.name}, step ${step}`, broken);
      for (const [name, measure] of Object.entries(MEASURES)) {
        const value = this.value(name);
        this.values[name].textContent = value === null ? "—" : measure.say(value);
      }
      const [last, status] = this.run.ended[image];
      const held = this.run.at[at] === step ? "" : `frame of step ${this.run.at[at]}`;
      this.note.textContent = step >= last ? `ended at ${last}: ${status}` : held;
    }

    get words() {
      const told = Object.entries(MEASURES).filter(([name]) => this.value(name) !== null)
        .map(([name, measure]) => `${measure.title} ${measure.say(this.value(name))}`).join(", ");
      const note = this.note.textContent && ` (${this.note.textContent})`;
      return `${this.where}, ${this.name}: ${told || "diverged"}${note}.`;
    }
  }

  class Viewer {
    constructor(figure, film) {
      Object.assign(this, { figure, film, at: 0, image: 0, measure: "psnr", timer: 0, width: 0 });
      const other = film.runs.findIndex(run => run.attack !== film.runs[0].attack);
      this.sides = [new Side(this, "Left", 0), new Side(this, "Right", other > 0 ? other : film.runs.length - 1)];
      this.private = new Frame(film);
      this.build();
      this.show();
      new ResizeObserver(() => this.plot.clientWidth !== this.width && this.curves()).observe(this.plot);
    }

    build() {
      const { film, sides: [left, right] } = this;
      const [image, images] = select("Image", value => { this.image = Number(value); this.show(); });
      const [curve, measures] = select("Curve", value => { this.measure = value; this.show(); });
      fill(images, film.images.map((name, i) => [i, name]), 0);
      fill(measures, Object.entries(MEASURES).map(([value, { title }]) => [value, title]), this.measure);
      this.step = make("span", { className: "gs-step" });
      this.plot = draw("svg", { class: "gs-plot", role: "img", height: HEIGHT });
      this.slider = make("input", { type: "range", min: 0, max: film.steps.length - 1, step: 1, value: 0 });
      this.slider.setAttribute("aria-label", "Step");
      this.slider.oninput = () => { this.stop(); this.go(Number(this.slider.value)); };
      this.button = make("button", { type: "button", onclick: () => this.timer ? this.stop() : this.play() });
      this.live = make("p", { className: "gs-live" });
      const middle = make("div", { className: "gs-controls gs-middle" }, image);
      const truth = make("div", { className: "gs-picture gs-middle" }, this.private.element);
      const below = make("p", { className: "gs-reading gs-middle", textContent: "private" });
      const alt = this.figure.querySelector("img").alt;
      const view = make("div", { className: "gs-view" },
        make("div", { className: "gs-sides" }, left.controls, middle, right.controls, left.picture, truth, right.picture,
          left.reading, below, right.reading),
        make("div", { className: "gs-head" }, curve, this.step),
        this.plot, make("div", { className: "gs-bar" }, this.button, this.slider), this.live);
      view.setAttribute("role", "group");
      view.setAttribute("aria-label", alt);
      this.drag();
      this.stop();
      still.addEventListener("change", () => this.stop());
      this.figure.prepend(view);
      this.figure.classList.add("gs-built");
    }

    /** The curve is a second handle: the slider has the keyboard, so it gets the focus. */
    drag() {
      const follow = event => {
        const box = this.plot.getBoundingClientRect();
        const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
        this.go(Math.round(Math.min(1, Math.max(0, share)) * (this.film.steps.length - 1)));
      };
      this.plot.addEventListener("pointerdown", event => {
        if (event.button !== 0) return;
        event.preventDefault();
        this.stop();
        this.plot.setPointerCapture(event.pointerId);
        this.slider.focus({ preventScroll: true });
        follow(event);
      });
      this.plot.addEventListener("pointermove", event => this.plot.hasPointerCapture(event.pointerId) && follow(event));
    }

    play() {
      if (this.at === this.film.steps.length - 1) this.go(0);
      this.timer = setInterval(() => {
        this.go(this.at + 1);
        if (this.at === this.film.steps.length - 1) this.stop();
      }, PAUSE);
      this.button.textContent = "Pause";
      this.live.setAttribute("aria-live", "off"); // nobody wants thirty frames read out
    }

    stop() {
      clearInterval(this.timer);
      this.timer = 0;
      this.button.textContent = "Play";
      this.button.hidden = still.matches; // who asks for less motion has the slider
      this.live.setAttribute("aria-live", "polite");
    }

    go(at) {
      this.at = Math.min(at, this.film.steps.length - 1);
      this.show();
    }

    show() {
      const { film, sides, image, at } = this, last = film.steps[film.steps.length - 1];
      sides.forEach(side => side.show());
      this.private.show(film.private, film.private.tiles[image][0], `${film.images[image]}, private`);
      this.slider.value = at;
      this.slider.setAttribute("aria-valuetext", `step ${film.steps[at]} of ${last}`);
      this.step.textContent = `Step ${film.steps[at]} of ${last}`;
      this.live.textContent = `${this.step.textContent}. ${sides.map(side => side.words).join(" ")}`;
      this.curves();
    }

    curves() {
      const { film, sides, image, at, plot } = this, { axis, log } = MEASURES[this.measure];
      this.width = plot.clientWidth;
      const right = this.width - RIGHT, bottom = HEIGHT - BOTTOM, end = film.steps.length - 1;
      const lines = sides.map(side => scaled(side.run[this.measure][image], log));
      const [low, high, marks] = range(lines.flat().filter(value => value !== null), log);
      const x = i => LEFT + (right - LEFT) * i / end;
      const y = value => bottom - (bottom - TOP) * (value - low) / (high - low);
      const parts = marks.flatMap(value => [
        draw("line", { class: "gs-grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
        draw("text", { x: LEFT - 12, y: y(value) + 4, "text-anchor": "end" }, log ? power(value) : String(value)),
      ]);
      const notches = this.width < 480 ? 2 : 4;
      for (let k = 0; k <= notches; k++) {
        const i = Math.round(k * end / notches), anchor = ["start", "middle", "end"][k === 0 ? 0 : k === notches ? 2 : 1];
        parts.push(draw("text", { x: x(i), y: bottom + 18, "text-anchor": anchor }, String(film.steps[i])));
      }
      parts.push(draw("text", { x: (LEFT + right) / 2, y: bottom + 35, "text-anchor": "middle" }, "step, frame by recorded frame"));
      parts.push(draw("text", { x: -(TOP + bottom) / 2, y: 13, "text-anchor": "middle", transform: "rotate(-90)" }, axis));
      parts.push(draw("line", { class: "gs-now", x1: x(at), x2: x(at), y1: TOP, y2: bottom }));
      lines.forEach((line, k) => {
        const side = ["gs-left", "gs-right"][k];
        parts.push(draw("path", { class: `gs-line ${side}`, d: path(line, x, y) }));
        if (line[at] !== null) parts.push(marker(k, x(at), y(line[at]), side));
      });
      plot.replaceChildren(...parts);
      plot.setAttribute("aria-label", `${axis} against the step: ${sides.map(side => side.name).join(" and ")}`);
    }
  }

  /** Values as they are drawn; nothing is as small as zero on a logarithmic axis. */
  function scaled(values, log) {
    return log ? values.map(value => value === null ? null : Math.log10(Math.max(value, 1e-16))) : values;
  }

  function range(values, log) {
    let low = values.length ? Math.min(...values) : 0, high = values.length ? Math.max(...values) : 1;
    const raw = Math.max((high - low) / 4, log ? 1 : 0.1);
    const size = 10 ** Math.floor(Math.log10(raw));
    const stride = log ? Math.ceil(raw) : [1, 2, 2.5, 5, 10].find(n => n * size >= raw) * size;
    low = Math.floor(low / stride) * stride;
    high = Math.max(Math.ceil(high / stride) * stride, low + stride);
    const count = Math.round((high - low) / stride);
    return [low, high, Array.from({ length: count + 1 }, (_, i) => +(low + i * stride).toPrecision(6))];
  }

  function power(exponent) {
    return `10${[...String(exponent)].map(c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`;
  }

  function path(line, x, y) {
    let pen = "M";
    return line.map((value, i) => {
      const part = value === null ? "" : `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L";
      return part;
    }).join("");
  }

  function marker(k, x, y, side) {
    return k ? draw("rect", { class: `gs-marker ${side}`, x: x - 5.5, y: y - 5.5, width: 11, height: 11 })
      : draw("circle", { class: `gs-marker ${side}`, cx: x, cy: y, r: 6 });
  }

  async function enhance(figure) {
    const film = JSON.parse(figure.dataset.scrubber);
    await Promise.all([film.private, ...film.runs].map(load));
    new Viewer(figure, film);
  }

  const begin = () => document.querySelectorAll("figure.gleak-scrubber").forEach(figure => {
    enhance(figure).catch(error => console.warn(`the comparison viewer could not be built: ${error}`));
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
