// The same request as a command and as a program. The key is never written out: both take it from the environment.

import { address, hasKey } from "./server.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(endpoint, body) {
  const key = hasKey() ? ' \\\n  -H "Authorization: Bearer $GANGWAY_API_KEY"' : "";
  return `curl -N ${quoted(address(endpoint))}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body))}`;
}

export function python(endpoint, body) {
  const headers = hasKey() ? ', headers={"Authorization": f"Bearer {os.environ[\'GANGWAY_API_KEY\']}"}' : "";
  return `${hasKey() ? "import os\n\n" : ""}import httpx

body = ${literal(body)}
with httpx.stream("POST", ${JSON.stringify(address(endpoint))}, json=body, timeout=None${headers}) as response:
    for line in response.iter_lines():
        print(line)`;
}

// A JSON value as Python writes it. JSON's strings are Python's, too.
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
}
