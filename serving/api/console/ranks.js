// What each rank does, in a word, as far as the status tells.

const LEFT = new Set(["restarting", "failed", "stopped"]);  // The ranks shown are those of the generation that ended.

export function stateOf(rank, status) {
  if (LEFT.has(status.group_state)) return ended(rank, status);
  if (rank.loaded_bytes < rank.shard_bytes || rank.shard_bytes === 0) return starting(rank);
  if (!status.ready) return { word: "starting", mood: "wait" };
  return status.queue.running ? { word: "computing", mood: "busy" } : { word: "ready", mood: "good" };
}

// The failure's sentence names the rank that went first; the others end with it.
function ended(rank, status) {
  const named = /\brank (\d+)\b/.exec(status.last_failure ?? "");
  if (named && Number(named[1]) === rank.rank) return { word: "dead", mood: "bad" };
  return { word: status.group_state === "stopped" ? "stopped" : "ending", mood: "wait" };
}

function starting(rank) {
  const share = rank.shard_bytes ? ` ${Math.floor((100 * rank.loaded_bytes) / rank.shard_bytes)} %` : "";
  return { word: `starting${share}`, mood: "wait" };
}

export function size(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(0)} MB` : `${bytes} B`;
}
