// The page: the models at the top, the conversation, and the composer below.

import { ServiceError, getJson, setToken } from "./api.js";
import { download, fill, newAnswer, show } from "./answer.js";
import { ask, askToken } from "./dialog.js";
import { addFiles, describe, fittingDocuments, showFiles } from "./files.js";
import { make } from "./markdown.js";
import { $, earlierTurns, messages, selectedModels, settings, state } from "./state.js";
import { checkSchema, setUpSchema } from "./tree.js";
import { switchLanguage, translate, word } from "./words.js";

const POLL = { ready: 10_000, waiting: 1500 }; // milliseconds between two looks at the state of the engines
const NEAR = 120; // pixels from the end within which the page follows a growing answer
const PAUSE = 4; // after drawing an answer, the page draws nothing for this many times as long

// ---- models ----

async function poll() {
  let ready = false;
  try {
    const { models } = await getJson("/api/state");
    if (!state.models.length && models.length) state.selected.add(models[0].name);
    state.models = models;
    ready = models.every((model) => model.status === "ready");
    showModels();
  } catch (error) {
    if (error instanceof ServiceError && error.status === 401) {
      const value = await askToken();
      if (value) setToken(value);
    } else showNotice(error instanceof ServiceError ? error.message : word("lost"));
  }
  setTimeout(poll, ready ? POLL.ready : POLL.waiting);
}

function showModels() {
  $("models").replaceChildren(...state.models.map((model) => {
    const button = make("button", `model ${model.status}`, make("i", "dot"), model.name);
    button.setAttribute("aria-pressed", state.selected.has(model.name));
    button.title = `${word(model.status, { name: model.name, cause: model.cause })}${model.context ? ` · ${word("tokens", { n: model.context })}` : ""}`;
    button.onclick = () => {
      if (!state.selected.delete(model.name)) state.selected.add(model.name);
      showModels();
    };
    return button;
  }));
  const troubled = state.models.filter((model) => model.status !== "ready");
  showNotice(troubled.map((model) => word(model.status, { name: model.name, cause: model.cause })).join(" "));
  $("slow").hidden = !state.models.some((model) => model.runtime === "transformers");
}

function showNotice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// ---- the conversation ----

async function send() {
  const question = $("question").value.trim();
  if (state.running || (!question && !state.files.length) || state.files.some((file) => file.reading)) return;
  if (!selectedModels().length) return showNotice(word("noModel"));
  if ($("json").checked && !(await checkSchema())) return openSettings(true);
  let documents;
  try {
    documents = await fittingDocuments(question);
  } catch (error) {
    return showNotice(error.message);
  }
  if (!documents) return;
  state.turns = earlierTurns();
  showConversation();
  const turn = { question, documents, answers: [] };
  state.turns.push(turn);
  Object.assign(state, { editing: null, files: [] });
  $("question").value = "";
  resize();
  showFiles();
  await run(turn);
}

/** Ask all selected models at once, and fill the turn with their answers. */
async function run(turn) {
  const chosen = settings();
  const before = state.turns.slice(0, state.turns.indexOf(turn));
  turn.answers = selectedModels().map((model) => newAnswer(model.name));
  state.running = new AbortController();
  showConversation();
  scrollToEnd(true);
  await Promise.all(turn.answers.map((answer) => {
    const list = messages(answer.model, chosen.system, before, turn.question, turn.documents);
    return fill(answer, list, chosen, state.running.signal, () => changed(answer, turn));
  }));
  state.running = null;
  showConversation();
  $("question").focus();
}

/** Show an answer that has grown, at most once per frame. A long text takes a small share of the time. */
function changed(answer, turn) {
  if (answer.drawing) return;
  answer.drawing = true;
  setTimeout(() => requestAnimationFrame(() => {
    answer.drawing = false;
    const started = performance.now();
    const follow = nearEnd();
    show(answer, turn.answers.length === 1);
    if (follow) scrollToEnd(false);
    answer.pause = PAUSE * (performance.now() - started);
  }), answer.pause || 0);
}

function nearEnd() {
  const box = $("conversation");
  return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
}

function scrollToEnd(always) {
  const box = $("conversation");
  if (always || box.scrollHeight > box.clientHeight) box.scrollTop = box.scrollHeight;
}

function showConversation() {
  $("send").hidden = Boolean(state.running);
  $("stop").hidden = !state.running;
  $("editing").hidden = state.editing === null;
  $("welcome").hidden = state.turns.length > 0;
  $("conversation").replaceChildren($("welcome"), ...state.turns.map(showTurn));
}

function showTurn(turn, number) {
  const files = turn.documents.map((file) => make("p", file.part ? "warning small" : "muted small", make("b", "", file.name), ` ${describe(file)}`));
  const edit = make("button", "plain small", word("edit"));
  edit.onclick = () => beginEdit(number);
  const tools = state.running ? [] : [edit];
  if (!state.running && number === state.turns.length - 1) {
    const retry = make("button", "plain small", word("retry"));
    retry.onclick = () => run(turn);
    tools.push(retry);
  }
  const question = make("div", "question", ...files, make("p", "text", turn.question), make("div", "row end", ...tools));
  for (const answer of turn.answers) show(answer, turn.answers.length === 1);
  const answers = make("div", "answers", ...turn.answers.map((answer) => answer.view));
  answers.style.setProperty("--columns", turn.answers.length);
  return make("div", "turn", question, answers);
}

function beginEdit(number) {
  const turn = state.turns[number];
  Object.assign(state, { editing: number, files: [...turn.documents] });
  $("question").value = turn.question;
  showFiles();
  resize();
  $("editing").hidden = false;
  $("question").focus();
}

function endEdit() {
  Object.assign(state, { editing: null, files: [] });
  $("question").value = "";
  showFiles();
  showConversation();
}

function startNew() {
  state.running?.abort();
  Object.assign(state, { turns: [], files: [], editing: null });
  showFiles();
  showConversation();
}

// ---- export ----

async function exportConversation() {
  const kind = await ask(word("export"), [], [[word("cancel"), null], [word("markdown"), "md"], [word("json"), "json"]]);
  if (kind === "md") download("conversation.md", asMarkdown(), "text/markdown");
  if (kind === "json") download("conversation.json", JSON.stringify(asRows(), null, 2), "application/json");
}

function asRows() {
  return state.turns.map(({ question, documents, answers }) => ({
    question,
    documents: documents.map(({ name, kind, part, text }) => ({ name, kind, part, text })),
    answers: answers.map(({ model, text, status, error, firstToken, speed, tokens }) => ({
      model, text, status, error, first_token_ms: firstToken, tokens_per_s: speed, tokens,
    })),
  }));
}

function asMarkdown() {
  return state.turns.map(({ question, documents, answers }) => [
    `## ${word("you")}`, ...documents.map((file) => `- ${file.name}: ${describe(file)}`), question,
    ...answers.map((answer) => `## ${answer.model}\n\n${answer.text || answer.error}`),
  ].join("\n\n")).join("\n\n");
}

// ---- the composer ----

function resize() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 240)}px`;
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("settings-button").setAttribute("aria-expanded", open);
}

function wireUp() {
  $("send").onclick = send;
  $("stop").onclick = () => state.running?.abort();
  $("new").onclick = startNew;
  $("export").onclick = exportConversation;
  $("settings-button").onclick = () => openSettings($("settings").hidden);
  $("settings-close").onclick = () => openSettings(false);
  $("editing-cancel").onclick = endEdit;
  $("language").onclick = () => { switchLanguage(); setUpSchema(); showModels(); showFiles(); showConversation(); };
  $("attach").onclick = () => $("picker").click();
  $("picker").onchange = () => { addFiles([...$("picker").files]); $("picker").value = ""; };
  $("question").oninput = resize;
  $("question").onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends Chinese input
    event.preventDefault();
    send();
  };
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => { event.preventDefault(); addFiles([...event.dataTransfer.files]); };
  $("question").onpaste = (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); addFiles([...event.clipboardData.files]); }
  };
}

translate();
setUpSchema();
wireUp();
poll();
