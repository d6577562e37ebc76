// A small chart of one or two lines over the last minutes: a figure with words, and an SVG that only draws.

import { make } from "./dom.js";
import { SPAN_MS } from "./history.js";
import { svg } from "./svg.js";

const WIDTH = 300;
const HEIGHT = 72;

export class Chart {
  // series: [{ field, name }]; format: a value in words; floor: the least top of the scale.
  constructor(parent, { id, title, series, format, floor }) {
    Object.assign(this, { series, format, floor });
    this.value = make("output", { ariaLive: "off" });
    this.text = svg("desc", { id: `${id}-text` });
    this.lines = svg("g");
    const drawing = svg("svg", {
      role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "chart",
      "aria-labelledby": `${id}-title ${id}-text`,
    }, svg("title", { id: `${id}-title` }, title), this.text, svg("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), this.lines);
    this.scale = make("span", { className: "scale" });
    parent.append(make("figure", {}, make("figcaption", {}, title, this.value), drawing, this.scale));
  }

  show(points, now) {
    const values = points.flatMap((point) => this.series.map(({ field }) => point[field])).filter((value) => value !== null);
    const top = Math.max(this.floor, ...values);
    const last = points.at(-1);
    this.value.value = this.series.map(({ field, name }) => this.#words(last[field], name)).join(" · ");
    this.scale.textContent = `top ${this.format(top)}`;
    this.text.textContent = `Now ${this.value.value}; highest ${values.length ? this.format(Math.max(...values)) : "unknown"}.`;
    this.lines.replaceChildren(...this.series.flatMap(({ field }, place) => draw(points, field, top, now, place)));
  }

  #words(value, name) {
    return `${value === null ? "–" : this.format(value)}${name ? ` ${name}` : ""}`;
  }
}

function draw(points, field, top, now, place) {
  const x = (at) => (WIDTH * (1 - (now - at) / SPAN_MS)).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (HEIGHT - 6) * (value / top)).toFixed(1);
  return runs(points, field).flatMap((run) => {
    const line = run.map((point) => `${x(point.at)} ${y(point[field])}`).join("L");
    const path = svg("path", { class: `line line-${place}`, d: run.length > 1 ? `M${line}` : `M${line}h1` });
    const area = svg("path", { class: "area", d: `M${x(run[0].at)} ${HEIGHT}L${line}L${x(run.at(-1).at)} ${HEIGHT}Z` });
    return place === 0 ? [area, path] : [path];
  });
}

// Stretches without a gap.
function runs(points, field) {
  const found = [[]];
  for (const point of points) {
    if (point[field] !== null) found.at(-1).push(point);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((run) => run.length);
}
