// A JSON value as a tree that unfolds, and the box for schemas with its examples.

import { postJson } from "./api.js";
import { make } from "./markdown.js";
import { $ } from "./state.js";
import { word } from "./words.js";

const OPEN_LEVELS = 3;

export function showTree(value) {
  return make("div", "tree", node("", value, 0));
}

function node(key, value, level) {
  const name = key === "" ? [] : [make("span", "key", key), ": "];
  if (value === null || typeof value !== "object") {
    return make("div", "leaf", ...name, make("span", value === null ? "null" : typeof value, JSON.stringify(value)));
  }
  const entries = Object.entries(value);
  const sign = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  const details = make("details", "", make("summary", "", ...name, make("span", "muted", sign)));
  details.open = level < OPEN_LEVELS;
  details.append(...entries.map(([inner, one]) => node(inner, one, level + 1)));
  return details;
}

const text = { type: "string" };
const object = (properties) => ({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const EXAMPLES = {
  person: object({ name: text, age: { type: "integer" }, city: text }),
  invoice: object({
    number: text, date: { type: "string", pattern: "^\\d{4}-\\d{2}-\\d{2}$" }, total: { type: "number" },
    items: { type: "array", items: object({ name: text, price: { type: "number" } }), maxItems: 20 },
  }),
  sentiment: object({ sentiment: { enum: ["positive", "neutral", "negative"] }, reason: text }),
};

/** Fill the list of examples, and check the schema whenever it changes. */
export function setUpSchema() {
  const options = Object.keys(EXAMPLES).map((name) => { const one = make("option", "", name); one.value = name; return one; });
  const choose = make("option", "", word("choose"));
  choose.value = "";
  $("example").replaceChildren(choose, ...options);
  $("example").onchange = () => {
    if (!$("example").value) return;
    $("schema").value = JSON.stringify(EXAMPLES[$("example").value], null, 2);
    checkSchema();
  };
  $("schema").oninput = checkSchema;
  $("json").onchange = () => { $("json-box").hidden = !$("json").checked; checkSchema(); };
}

/** Show whether the schema is accepted. Resolves to true if it is. */
export async function checkSchema() {
  const source = $("schema").value.trim();
  try {
    if (source) await postJson("/api/schema", { schema: JSON.parse(source) });
    return schemaState(word(source ? "schemaGood" : "schemaNone"), true);
  } catch (error) {
    return schemaState(error.message, false);
  }
}

function schemaState(message, good) {
  $("schema-state").textContent = message;
  $("schema-state").className = good ? "muted" : "bad";
  return good;
}
