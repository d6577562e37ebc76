// A few minutes of what the server said, second by second, and what follows from its counters.

export const SPAN_MS = 180_000;
const RATE_MS = 5_000;  // Counters are compared over this long: a step's tokens come in lumps.

export class History {
  constructor() {
    this.points = [];
    this.readings = [];
  }

  // A point of the charts; its values are null where nothing is known.
  add(at, status, samples) {
    this.readings = this.readings.filter((reading) => at - reading.at <= RATE_MS);
    const oldest = this.readings[0];
    const tokens = samples.get("generation_tokens_total") ?? 0;
    const firsts = samples.get("time_to_first_token_seconds_count") ?? 0;
    const seconds = samples.get("time_to_first_token_seconds_sum") ?? 0;
    this.readings.push({ at, tokens, firsts, seconds });
    const point = { at, running: status.queue.running, waiting: status.queue.waiting, kv: share(status.kv), speed: null, ttft: null };
    if (oldest && tokens >= oldest.tokens) {  // else the gateway is a new process, whose counters began at zero
      point.speed = (tokens - oldest.tokens) / ((at - oldest.at) / 1000);
      if (firsts > oldest.firsts) point.ttft = (seconds - oldest.seconds) / (firsts - oldest.firsts);
    } else this.readings = this.readings.slice(-1);
    this.#keep(point);
    return point;
  }

  // The server did not answer: a gap in every line.
  miss(at) {
    this.readings = [];
    this.#keep({ at, running: null, waiting: null, kv: null, speed: null, ttft: null });
  }

  #keep(point) {
    this.points = [...this.points.filter((one) => point.at - one.at <= SPAN_MS), point];
  }
}

const share = (kv) => (kv.blocks_total ? kv.blocks_used / kv.blocks_total : 0);
