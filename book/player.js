"use strict";
// Draws recorded live figures (course_lib/support/recording.py): classic script, no network, works from file://.
// <figure class="live" data-recording="NAME"><img …></figure>: the picture gives way to controls, canvas and words.
const recordings = {};  // name -> what to do when its script has run
function recorded(name, packed) { recordings[name](packed); }

const WIDE = { tabindex: 0, role: "group", "aria-label": "The picture, which scrolls sideways" };

const Player = (() => {
  const unpack = async packed => {
    const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  const load = (name, address) => new Promise((resolve, reject) => {
    recordings[name] = resolve;
    const script = document.createElement("script");
    script.src = address;
    script.onerror = () => reject(new Error(`No recording at ${address}`));
    document.head.append(script);
  }).then(unpack);

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // Outlines become Path2D when they are first drawn.
  const cached = texts => { const made = []; return i => made[i] ??= new Path2D(texts[i]); };

  class Picture {
    constructor(data, images) {
      Object.assign(this, data, { images, outline: cached(data.outlines), paths: new Map(), marks: {} });
      const [width, height] = data.size, ratio = Math.max(data.sharpness || 1, window.devicePixelRatio || 1);
      this.ratio = ratio;
      this.canvas = make("canvas", { role: "img", "aria-label": data.alt, width: Math.round(width * ratio), height: Math.round(height * ratio) });
      this.canvas.style.width = `${width / 1.1}px`;
      this.pen = this.canvas.getContext("2d");
    }

    path(d) {
      if (!this.paths.has(d)) this.paths.set(d, new Path2D(d));
      return this.paths.get(d);
    }

    draw(setting) {
      const { pen, canvas } = this, [still, ...moving] = this.rows;
      if (this.behind !== still[setting]) {  // what does not move is kept as pixels
        this.kept ??= make("canvas", { width: canvas.width, height: canvas.height });
        this.pen = this.kept.getContext("2d");
        this.pen.clearRect(0, 0, canvas.width, canvas.height);
        this.run(this.drawings[still[setting]]);
        this.behind = still[setting];
        this.pen = pen;
      }
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(this.kept, 0, 0);
      for (const row of moving) this.run(this.drawings[row[setting]]);
    }

    run(drawing) {
      const { pen, ratio, unit } = this;
      for (const number of drawing) {
        const [kind, ...op] = this.ops[number], what = [this.line, this.stamps, this.image][kind];
        if (!what) throw new Error(`A drawing of unknown kind ${kind}`);
        pen.save();
        pen.scale(ratio / unit, ratio / unit);
        what.apply(this, op);
        pen.restore();
      }
    }

    // Cut away what the clip says; -> a function that draws a path in a style.
    begin(style, clip) {
      const { pen } = this;
      for (const d of this.clips[clip] ?? []) pen.clip(this.path(d));
      const [fill, stroke, width, dashes, offset, cap, join] = this.styles[style] ?? [];
      if (fill) pen.fillStyle = fill;
      if (stroke) {
        Object.assign(pen, { strokeStyle: stroke, lineWidth: width, lineCap: cap, lineJoin: join, miterLimit: 4, lineDashOffset: offset });
        pen.setLineDash(dashes);
      }
      return path => { if (fill) pen.fill(path); if (stroke) pen.stroke(path); };
    }

    line(style, clip, d) { this.begin(style, clip)(this.path(d)); }

    // Letters one by one; marks from a small picture of one.
    stamps(style, clip, shapes, steps, angle, reach) {
      const { pen, ratio, unit } = this, put = this.begin(style, clip), mark = reach && this.mark(style, shapes, reach);
      const home = pen.getTransform();
      if (reach) pen.setTransform(1, 0, 0, 1, 0, 0);
      for (let i = 0, x = 0, y = 0; i < steps.length; i += 2) {
        x += steps[i]; y += steps[i + 1];
        if (reach) {
          pen.drawImage(mark, Math.round(x * ratio / unit - mark.width / 2), Math.round(y * ratio / unit - mark.height / 2));
          continue;
        }
        pen.setTransform(home);
        pen.translate(x, y);
        if (angle) pen.rotate(-angle * Math.PI / 180);
        put(this.outline(shapes[i / 2]));
      }
    }

    mark(style, shape, reach) {
      const key = [style, shape].join(), { pen, ratio, unit } = this, size = 2 * Math.ceil(reach * ratio);
      if (!this.marks[key]) {
        const canvas = this.marks[key] = make("canvas", { width: size, height: size });
        this.pen = canvas.getContext("2d");
        this.pen.setTransform(ratio / unit, 0, 0, ratio / unit, size / 2, size / 2);
        this.begin(style, -1)(this.outline(shape));
        this.pen = pen;
      }
      return this.marks[key];
    }

    image(clip, [sheet, x, y, width, height], matrix, smooth) {
      const { pen } = this;
      this.begin(-1, clip);
      pen.scale(this.unit, this.unit);
      pen.transform(...matrix);
      pen.imageSmoothingEnabled = Boolean(smooth);
      pen.imageSmoothingQuality = "high";
      pen.drawImage(this.images[sheet], x, y, width, height, 0, 0, width, height);
    }
  }

  // A control: -> its element, the input, and functions that read and set the number of its value.
  const controlOf = ([start, texts, kind, name], moved) => {
    let input;
    const now = make("output", { "aria-hidden": "true" });
    if (kind === "select") input = make("select", {}, ...texts.map(text => make("option", {}, text)));
    else if (kind === "checkbox") input = make("input", { type: "checkbox" });
    else input = make("input", { type: "range", min: 0, max: texts.length - 1, step: 1 });
    const read = () => kind === "select" ? input.selectedIndex : kind === "checkbox" ? Number(input.checked) : Number(input.value);
    const say = () => {
      if (kind !== "range") return;
      now.textContent = texts[read()];
      input.setAttribute("aria-valuetext", texts[read()]);
    };
    const write = i => {
      if (kind === "select") input.selectedIndex = i;
      else if (kind === "checkbox") input.checked = Boolean(i);
      else input.value = i;
      say();
    };
    input.addEventListener("input", () => { say(); moved(); });
    write(start);
    return { element: make("label", {}, make("span", {}, name), input, now), read, write, start, n: texts.length, input, texts };
  };

  const decoded = async address => { const image = new Image(); image.src = address; await image.decode(); return image; };

  async function play(figure) {
    const name = figure.dataset.recording;
    const data = { ...await load(name, figure.dataset.address), sharpness: figure.dataset.sharpness };
    const picture = data.size ? new Picture(data, await Promise.all(data.sheets.map(decoded))) : null;
    const words = make("p", { class: "live-words", role: "status", "aria-live": "polite" });
    const setting = () => controls.reduce((at, control) => at * control.n + control.read(), 0);
    const show = () => {
      const at = setting();
      if (picture) picture.draw(at);
      words.textContent = data.words[at];
    };
    const controls = data.controls.map(control => controlOf(control, show));
    const reset = make("button", { type: "button", title: "all controls back to where they began" }, "Reset");
    reset.addEventListener("click", () => { for (const control of controls) control.write(control.start); show(); });
    const player = make("div", { class: "live-player", role: "group", "aria-label": "Live figure" },
      make("div", { class: "live-controls" }, ...controls.map(control => control.element), reset),
      ...(picture ? [make("div", { class: "live-picture", ...(innerWidth < 700 ? WIDE : {}) }, picture.canvas)] : []), words);
    show();
    figure.querySelector(".live-still").replaceWith(player);
    figure.querySelector(".live-note")?.prepend(data.note + " ");
    figure.player = { data, picture, controls, words, show, setting };
    figure.classList.add("live-awake");
    return figure.player;
  }

  // Figures wake when they come near to what is seen; until then, and in print, their pictures stand there.
  const start = () => {
    const wake = figure => { watch.unobserve(figure); play(figure).catch(error => { figure.classList.add("live-failed"); throw error; }); };
    const watch = new IntersectionObserver(
      entries => entries.filter(entry => entry.isIntersecting).forEach(entry => wake(entry.target)), { rootMargin: "600px" });
    document.querySelectorAll("figure.live[data-recording]").forEach(figure => watch.observe(figure));
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
  return { play };
})();
