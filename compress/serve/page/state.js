// What the page holds: the models, the conversation and the settings. Nothing of it is stored.

export const $ = (id) => document.getElementById(id);

/**
 * A turn is {question, documents, answers}; a document is {name, text, ...} as /api/document returns it. An answer is
 * {model, text, status, error, firstToken, speed, tokens, finish, json, check, view}. `editing` is the index of the
 * turn that the next question replaces; `running` is the AbortController of the answers that come in.
 */
export const state = { models: [], selected: new Set(), turns: [], files: [], editing: null, running: null };

export function selectedModels() {
  return state.models.filter((model) => state.selected.has(model.name));
}

/** The settings of the next request. `schema` is null in JSON mode without a schema, undefined outside of JSON mode. */
export function settings() {
  const number = (id) => { const value = $(id).valueAsNumber; return Number.isFinite(value) ? value : undefined; };
  const text = $("schema").value.trim();
  return {
    system: $("system").value.trim(),
    temperature: number("temperature"),
    top_p: number("top-p"),
    max_tokens: number("max-tokens"),
    schema: $("json").checked ? (text ? JSON.parse(text) : null) : undefined,
  };
}

/**
 * The messages of a request to one model: the system prompt, earlier turns with that model's answers, and the question.
 * A turn that this model has not answered has another model's answer. A turn without any answer is left out.
 */
export function messages(model, system, turns, question, documents) {
  const list = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const answered = turn.answers.filter((answer) => answer.text);
    const answer = answered.find((one) => one.model === model) || answered[0];
    if (!answer) continue;
    list.push(userMessage(turn.question, turn.documents), { role: "assistant", content: answer.text });
  }
  return [...list, userMessage(question, documents)];
}

function userMessage(content, documents) {
  const message = { role: "user", content };
  if (documents.length) message.documents = documents.map(({ name, text }) => ({ name, text }));
  return message;
}

/** Turns before the one that is being edited, or all of them. */
export function earlierTurns() {
  return state.editing === null ? state.turns : state.turns.slice(0, state.editing);
}
