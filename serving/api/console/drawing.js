// The group as a drawing: a frame for each node, a box for each rank in it, as many side by side as the page is wide.

import { size, stateOf } from "./ranks.js";
import { svg } from "./svg.js";

const BOX = { width: 148, height: 92, gap: 10 };
const PADDING = 12;
const HEAD = 28;

export class Drawing {
  constructor(root) {
    this.root = root;
    this.text = root.querySelector("desc");
    this.body = svg("g");
    root.append(this.body);
  }

  show(status) {
    const width = Math.max(this.root.clientWidth, BOX.width + 2 * PADDING);
    const across = Math.max(1, Math.floor((width - 2 * PADDING + BOX.gap) / (BOX.width + BOX.gap)));
    let top = 0;
    const drawn = nodes(status.ranks).map(([node, ranks]) => {
      const element = drawNode(node, ranks, status, { top, width, across });
      top += heightOf(ranks, across) + BOX.gap;
      return element;
    });
    this.body.replaceChildren(...drawn);
    this.root.setAttribute("viewBox", `0 0 ${width} ${Math.max(top, 1)}`);
    this.#tell(status);
  }

  // Changed only when there is news: some screen readers read a changed description aloud.
  #tell(status) {
    const told = status.ranks.map((rank) => `rank ${rank.rank}, ${words(rank)}, ${stateOf(rank, status).word}`).join("; ");
    const text = `Generation ${status.generation}: ${told || "no ranks yet"}.`;
    if (this.text.textContent !== text) this.text.textContent = text;
  }
}

function nodes(ranks) {
  const found = new Map();
  for (const rank of ranks) found.set(rank.node_id, [...(found.get(rank.node_id) ?? []), rank]);
  return [...found];
}

const heightOf = (ranks, across) => HEAD + Math.ceil(ranks.length / across) * (BOX.height + BOX.gap) - BOX.gap + PADDING;

function drawNode(node, ranks, status, { top, width, across }) {
  const frame = svg("rect", { class: "node", x: 0.5, y: top + 0.5, width: width - 1, height: heightOf(ranks, across) - 1, rx: 8 });
  const name = svg("text", { class: "node-name", x: PADDING, y: top + 19 }, `node ${node.slice(0, 8)} · ${ranks[0].ip}`);
  const boxes = ranks.map((rank, place) => drawRank(rank, stateOf(rank, status), {
    x: PADDING + (place % across) * (BOX.width + BOX.gap),
    y: top + HEAD + Math.floor(place / across) * (BOX.height + BOX.gap),
  }));
  return svg("g", {}, frame, name, ...boxes);
}

function drawRank(rank, { word, mood }, { x, y }) {
  const line = (text, row, name) => svg("text", { class: name, x: 10, y: 20 + 20 * row }, text);
  return svg("g", { class: "rank", "data-rank": rank.rank, "data-mood": mood, transform: `translate(${x} ${y})` },
    svg("rect", { class: "box", width: BOX.width, height: BOX.height, rx: 6 }),
    svg("circle", { class: "lamp", cx: BOX.width - 14, cy: 15, r: 5 }),
    line(`rank ${rank.rank}`, 0, "rank-name"), line(word, 1, "rank-state"),
    line(words(rank), 2, "rank-facts"), line(`${rank.device} · pid ${rank.pid}`, 3, "rank-facts"));
}

const words = (rank) => `${size(rank.shard_bytes)}${rank.heads ? ` · ${rank.heads} heads` : ""}`;
