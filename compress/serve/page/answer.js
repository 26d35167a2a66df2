// One answer of one model: asked for, streamed, measured, validated and shown.

import { ServiceError, chat, getJson, postJson } from "./api.js";
import { make, render } from "./markdown.js";
import { showTree } from "./tree.js";
import { word } from "./words.js";

const QUEUE_AFTER = 1500; // milliseconds without an answer until the queue is shown

export function newAnswer(model) {
  return { model, text: "", status: "waiting", error: "", tokens: 0, view: make("article", "answer") };
}

/** Ask a model and fill the answer. It never throws: what went wrong is in `error`. */
export async function fill(answer, list, settings, signal, changed) {
  const body = { model: answer.model, messages: list, stream_options: { include_usage: true }, ...sampling(settings) };
  const started = performance.now();
  const watching = setInterval(() => showQueue(answer, changed), QUEUE_AFTER);
  try {
    for await (const event of chat(body, signal)) take(answer, event, started, changed);
    answer.status = "done";
    if (settings.schema !== undefined) await check(answer, settings.schema);
  } catch (error) {
    fail(answer, error);
  } finally {
    clearInterval(watching);
    changed();
  }
}

function sampling({ temperature, top_p, max_tokens, schema }) {
  const format = schema ? { type: "json_schema", json_schema: { name: "answer", schema } } : { type: "json_object" };
  return { temperature, top_p, max_tokens, ...(schema === undefined ? {} : { response_format: format }) };
}

/** Add an event to the answer, and measure: seconds to the first token, tokens per second after it. */
function take(answer, event, started, changed) {
  const [choice] = event.choices || [];
  const piece = choice?.delta?.content || "";
  const now = performance.now();
  if (piece) {
    answer.status = "streaming";
    answer.firstToken ??= now - started;
    answer.text += piece;
    answer.tokens += 1;
    answer.seconds = (now - started - answer.firstToken) / 1000;
  }
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (event.usage) answer.tokens = event.usage.completion_tokens;
  if (answer.tokens > 1 && answer.seconds > 0) answer.speed = (answer.tokens - 1) / answer.seconds;
  changed();
}

function fail(answer, error) {
  answer.status = error.name === "AbortError" ? "stopped" : "error";
  if (answer.status === "stopped") return;
  const wait = error.retryAfter ? ` ${word("busy", { s: error.retryAfter })}` : "";
  answer.error = error instanceof ServiceError ? error.message + wait : word("lost");
}

async function showQueue(answer, changed) {
  if (answer.status !== "waiting") return;
  try {
    const row = (await getJson("/api/state")).models.find((model) => model.name === answer.model);
    answer.queue = row?.waiting ? Math.max(0, row.waiting - 1) : 0;
    changed();
  } catch { /* the request itself reports a lost connection */ }
}

/** Validate the whole answer again, in the service. */
async function check(answer, schema) {
  try {
    answer.check = await postJson("/api/validate", { schema, answer: answer.text });
  } catch (error) {
    answer.check = { valid: false, errors: [error.message] };
  }
}

/** Write an answer into its view. `alone` leaves out the model's name. */
export function show(answer, alone) {
  const parts = alone ? [] : [make("h3", "", answer.model)];
  if (answer.status === "waiting") parts.push(make("p", "muted pulse", answer.queue ? word("waiting", { n: answer.queue }) : "…"));
  if (answer.check?.valid) parts.push(showTree(answer.check.value));
  else if (answer.text) parts.push(make("div", "markdown", ...render(answer.text)));
  if (answer.check) parts.push(...verdict(answer.check));
  if (answer.error) parts.push(make("p", "bad", answer.error));
  if (answer.finish === "length") parts.push(make("p", "warning", word("length")));
  parts.push(make("p", "muted small figures", figures(answer)));
  if (answer.text && answer.status !== "streaming") parts.push(buttons(answer));
  answer.view.replaceChildren(...parts);
}

function figures(answer) {
  const facts = [];
  if (answer.firstToken !== undefined) facts.push(word("first_token", { s: (answer.firstToken / 1000).toFixed(2) }));
  if (answer.speed) facts.push(word("speed", { n: Number(answer.speed.toFixed(1)) }));
  if (answer.tokens) facts.push(word("tokens", { n: answer.tokens }));
  if (answer.status === "stopped") facts.push(word("stopped"));
  return facts.join(" · ");
}

function verdict(row) {
  if (row.valid) return [make("p", "good", `✓ ${word("valid")}`)];
  return [make("p", "bad", `✗ ${word("invalid")}`), ...row.errors.map((error) => make("p", "bad small", error))];
}

function buttons(answer) {
  const copy = make("button", "plain small", word("copy"));
  copy.onclick = () => navigator.clipboard.writeText(answer.text);
  const row = make("div", "row", copy);
  if (answer.check) {
    const save = make("button", "plain small", word("download"));
    save.onclick = () => download(`${answer.model}.json`, answer.text, "application/json");
    row.append(save);
  }
  return row;
}

/** Hand a text to the browser as a file. */
export function download(name, text, kind) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
