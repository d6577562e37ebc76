// A request of the playground: its body for each endpoint, and what its events say, in one shape.

export function bodyOf(endpoint, { system, prompt, parameters: { raw, logprobs, ...parameters } }) {
  const chat = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  const stream_options = { include_usage: true, continuous_usage_stats: true };
  if (logprobs !== undefined) {
    Object.assign(parameters, endpoint.includes("chat") ? { logprobs: true, top_logprobs: logprobs } : { logprobs });
  }
  if (endpoint === "/predict") return { inputs: system ? [chat] : prompt, ...(raw && { raw }), parameters, stream: true };
  if (endpoint === "/v1/completions") return { prompt, ...parameters, stream: true, stream_options };
  return { messages: chat, ...parameters, stream: true, stream_options };
}

// An event as { pieces: [{ place, text, finish, likelihoods }], tokens }: tokens of the whole answer so far, where it
// says so.
export function readEvent(event) {
  if (event.error) throw new Error(event.error.message);
  const choices = event.choices ?? [{ ...event, index: event.sample ?? event.index }];
  const pieces = choices.map(({ index, text, delta, finish_reason, logprobs }) => ({
    place: index, text: text ?? delta?.content ?? "", finish: finish_reason, likelihoods: likelihoods(logprobs),
  }));
  return { pieces, tokens: event.choices ? event.usage?.completion_tokens : undefined };
}

// [token, log probability] of each, in either of OpenAI's two shapes.
function likelihoods(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content.map(({ token, logprob }) => [token, logprob]);
  return logprobs.tokens.map((token, place) => [token, logprobs.token_logprobs[place]]);
}
