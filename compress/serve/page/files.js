// Files of the next question: read by the service, shown as chips, and shortened only as a person chooses.

import { postJson, upload } from "./api.js";
import { ask, preview } from "./dialog.js";
import { make } from "./markdown.js";
import { $, earlierTurns, messages, selectedModels, settings, state } from "./state.js";
import { word } from "./words.js";

const MARGIN = 24; // tokens that the service keeps free too
const SHARE = 0.5; // of the context that the answer may keep at most, whatever its longest length

/** Read files and add them to the next question, one after another. */
export async function addFiles(list) {
  for (const source of list) {
    const file = { name: source.name, text: "", notes: [], reading: true };
    state.files.push(file);
    showFiles();
    try {
      Object.assign(file, await upload(source), { reading: false });
      file.tokens = await tokensOf(selectedModels()[0], [{ role: "user", content: "", documents: [{ name: file.name, text: file.text }] }]);
    } catch (error) {
      Object.assign(file, { reading: false, error: error.message });
    }
    showFiles();
  }
}

async function tokensOf(model, list) {
  return postJson("/api/tokens", { model: model.name, messages: list });
}

export function tokenText(counted) {
  return word(counted.exact ? "tokens" : "about", { n: counted.tokens });
}

export function showFiles() {
  $("files").replaceChildren(...state.files.map(chip));
}

function chip(file) {
  const facts = file.error || (file.reading ? word("reading") : describe(file));
  const open = make("button", "plain name", make("b", "", file.name), " ", make("span", "", facts));
  open.title = word("preview");
  open.disabled = !file.text;
  open.onclick = () => preview(file);
  const remove = make("button", "plain", "×");
  remove.title = word("remove");
  remove.setAttribute("aria-label", `${word("remove")} ${file.name}`);
  remove.onclick = () => { state.files = state.files.filter((one) => one !== file); showFiles(); };
  return make("span", file.error ? "chip bad" : file.notes.length ? "chip warning" : "chip", open, remove);
}

/** Kind, pages, tokens and what is missing of a file, in one line. */
export function describe(file) {
  const facts = [file.kind];
  if (file.pages) facts.push(word("pages", { n: file.pages }));
  if (file.tokens) facts.push(tokenText(file.tokens));
  if (file.part) facts.push(file.part);
  return [...facts, ...file.notes].join(" · ");
}

/** The files that were read, without those that failed. */
export function readableFiles() {
  return state.files.filter((file) => file.text);
}

/**
 * The documents of the next question, as they fit the smallest context of the selected models. A person chooses what
 * is sent of files that do not fit. Resolves to null if the person cancels.
 */
export async function fittingDocuments(question) {
  const files = readableFiles();
  const tight = files.length ? await tightest(question, files) : null;
  if (!tight || tight.tokens + tight.reserve <= tight.context) return files;
  const without = await count(tight.model, question, files.map((file) => ({ ...file, text: "" })));
  const room = tight.context - tight.reserve - without.tokens - MARGIN;
  if (room < 50) {
    await ask(word("tooLong"), [make("p", "", word("noRoom"))], [[word("close"), null]]);
    return null;
  }
  const values = { n: tight.tokens, name: tight.model.name, context: tight.context, reserve: tight.reserve };
  const buttons = [[word("cancel"), null], [word("first"), "first"], [word("best"), "best"]];
  const how = await ask(word("tooLong"), [make("p", "", word("tooLongText", values))], buttons);
  return how && shorten(files, tight.model, room, how, question);
}

function count(model, question, files) {
  return tokensOf(model, messages(model.name, settings().system, earlierTurns(), question, files));
}

/** The model with the least room left: {model, tokens, context, reserve}. Models with an unknown context are left out. */
async function tightest(question, files) {
  const rows = await Promise.all(selectedModels().filter((model) => model.context).map(async (model) => {
    const { tokens, context } = await count(model, question, files);
    const reserve = Math.min(settings().max_tokens || 512, Math.floor(context * SHARE));
    return { model, tokens, context, reserve };
  }));
  return rows.sort((a, b) => a.context - a.tokens - (b.context - b.tokens))[0];
}

/** The files, each with a share of the room by its length. Null if nothing matches the question. */
async function shorten(files, model, room, how, question) {
  const total = files.reduce((sum, file) => sum + file.tokens.tokens, 0);
  const fitted = await Promise.all(files.map(async (file) => {
    const share = Math.floor((room * file.tokens.tokens) / total);
    const body = { model: model.name, text: file.text, room: share, how, question };
    const { text, tokens, parts, of } = await postJson("/api/fit", body);
    return { ...file, text, tokens: { ...file.tokens, tokens }, part: `${word("partial", { n: parts, of })}` };
  }));
  const useful = fitted.filter((file) => file.text);
  if (useful.length) return useful;
  await ask(word("tooLong"), [make("p", "", word("noMatch"))], [[word("close"), null]]);
  return null;
}
