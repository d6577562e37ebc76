// The page: watches the server and shows what it says.

import { Chart } from "./chart.js";
import { byId, make } from "./dom.js";
import { Drawing } from "./drawing.js";
import { History } from "./history.js";
import { KeyDialog } from "./key.js";
import { Playground } from "./playground.js";
import { Watch } from "./watch.js";

const MOODS = { ready: "good", failed: "bad", stopped: "bad" };
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const seconds = (value) => (value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(1)} s`);

const history = new History();
const drawing = new Drawing(byId("drawing"));
const charts = [
  { id: "speed-chart", title: "Tokens/s", series: [{ field: "speed" }], format: (value) => value.toFixed(1), floor: 10 },
  { id: "ttft-chart", title: "TTFT", series: [{ field: "ttft" }], format: seconds, floor: 0.1 },
  { id: "queue-chart", title: "Requests", series: [{ field: "running", name: "running" }, { field: "waiting", name: "waiting" }], format: String, floor: 4 },
  { id: "kv-chart", title: "KV blocks used", series: [{ field: "kv" }], format: percent, floor: 1 },
].map((options) => new Chart(byId("charts"), options));
const keys = new KeyDialog(() => watch.now());
const watch = new Watch(show, fail);
new Playground((error) => keys.ask(error.message));
watch.now();

function show(status, samples) {
  notice("");
  byId("model").textContent = status.model;
  mood(MOODS[status.state] ?? "wait", `${status.state}, generation ${status.generation}`);
  drawing.show(status);
  facts(status);
  history.add(Date.now(), status, samples);
  draw();
}

function fail(error) {
  history.miss(Date.now());
  draw();
  if (error.status === 401) {
    mood("wait", "an API key is needed");
    keys.ask(error.message);
  } else {
    mood("bad", "no answer");
    notice(`The server is gone: ${error.message}. What stands below is the last that was heard; this page goes on asking.`);
  }
}

function facts(status) {
  const entries = {
    Generation: status.generation, Restarts: status.restarts,
    "KV blocks": `${status.kv.blocks_used} of ${status.kv.blocks_total}`,
    "Last failure": status.last_failure ?? "none",
  };
  const pairs = Object.entries(entries).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));
  byId("facts").replaceChildren(...pairs);
}

const draw = () => charts.forEach((chart) => chart.show(history.points, Date.now()));

// Live regions are written to when there is news only, else each second would be read aloud.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mood(value, text) {
  byId("state").dataset.mood = value;
  write(byId("state-text"), text);
}

function notice(text) {
  byId("notice").hidden = !text;
  write(byId("notice"), text);
}
