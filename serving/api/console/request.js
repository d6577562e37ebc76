// A request of the playground: its body for each endpoint, and what its events say, in one shape.

export function bodyOf(endpoint, { system, prompt, parameters }) {
  const chat = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  if (endpoint === "/predict") return { inputs: system ? [chat] : prompt, parameters, stream: true };
  if (endpoint === "/v1/completions") return { prompt, ...parameters, stream: true, stream_options };
  return { messages: chat, ...parameters, stream: true, stream_options };
}

// An event as { pieces: [{ place, text, finish }], tokens }: tokens of the whole answer so far, where it says so.
export function readEvent(event) {
  if (event.error) throw new Error(event.error.message);
  const choices = event.choices ?? [{ index: event.sample ?? event.index, text: event.text, finish_reason: event.finish_reason }];
  const pieces = choices.map(({ index, text, delta, finish_reason }) => ({
    place: index, text: text ?? delta?.content ?? "", finish: finish_reason,
  }));
  return { pieces, tokens: event.choices ? event.usage?.completion_tokens : undefined };
}
