// The parameters: one field each. An empty one is not sent, nor one that the endpoint does not know.

import { make } from "./dom.js";

const whole = (text) => Number.parseInt(text, 10);
const wholeList = (text) => text.split(/[\s,]+/).filter(Boolean).map(whole);
const lines = (text) => text.split("\n").filter(Boolean);

const NUMBER = { type: "number", step: "any" };
const WHOLE = { type: "number", step: 1 };
const FIELDS = [
  ["max_tokens", { ...WHOLE, min: 1 }, whole],
  ["temperature", { ...NUMBER, min: 0, max: 2 }, Number],
  ["top_p", { ...NUMBER, min: 0, max: 1 }, Number],
  ["top_k", { ...WHOLE, min: -1 }, whole],
  ["min_p", { ...NUMBER, min: 0, max: 1 }, Number],
  ["seed", WHOLE, whole],
  ["n", { ...WHOLE, min: 1, max: 16 }, whole],
  ["min_tokens", { ...WHOLE, min: 0 }, whole],
  ["repetition_penalty", { ...NUMBER, min: 0, max: 10 }, Number],
  ["presence_penalty", { ...NUMBER, min: -2, max: 2 }, Number],
  ["frequency_penalty", { ...NUMBER, min: -2, max: 2 }, Number],
  ["stop", { rows: 2, placeholder: "one a line" }, lines],
  ["stop_token_ids", { type: "text", placeholder: "2, 17" }, wholeList],
  ["logit_bias", { type: "text", placeholder: '{"42": -5}' }, JSON.parse],
  ["timeout_s", { ...NUMBER, min: 0 }, Number],
  ["priority", WHOLE, whole],
  ["cache_salt", { type: "text" }, String],
  ["logprobs", { ...WHOLE, min: 0, max: 20, placeholder: "how many others beside each" }, whole],
  ["ignore_eos", { type: "checkbox" }],
  ["raw", { type: "checkbox" }],
];

export class Fields {
  constructor(parent) {
    this.inputs = FIELDS.map(([name, properties, read]) => ({ name, read, input: field(parent, name, properties) }));
  }

  offer(name, known) {
    this.inputs.find((field) => field.name === name).input.disabled = !known;
  }

  // Name -> value of all that are set. Throws a sentence that names the field.
  values() {
    const given = this.inputs.filter(({ input }) => !input.disabled && isSet(input));
    return Object.fromEntries(given.map(({ name, read, input }) => [name, value(name, read, input)]));
  }
}

const isSet = (input) => (input.type === "checkbox" ? input.checked : input.value.trim());

function value(name, read, input) {
  try {
    return input.type === "checkbox" ? true : read(input.value);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
}

function field(parent, name, properties) {
  const { rows, ...others } = properties;
  const input = make(rows ? "textarea" : "input", { id: `field-${name}`, autocomplete: "off", ...others, ...(rows && { rows }) });
  const label = make("label", { htmlFor: input.id }, name);
  parent.append(make("div", { className: "field" }, label, input));
  return input;
}
