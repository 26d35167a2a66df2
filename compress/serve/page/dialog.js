// One dialog for everything that needs a person's choice.

import { make } from "./markdown.js";
import { $ } from "./state.js";
import { word } from "./words.js";

/** Show a dialog. Resolves to the value of the pressed button, or to null if it was closed without one. */
export function ask(title, body, buttons) {
  const dialog = $("dialog");
  $("dialog-title").textContent = title;
  $("dialog-body").replaceChildren(...body);
  return new Promise((resolve) => {
    const end = (value) => { dialog.onclose = null; dialog.close(); resolve(value); };
    $("dialog-buttons").replaceChildren(...buttons.map(([text, value]) => {
      const button = make("button", value === null ? "plain" : "main", text);
      button.onclick = () => end(value);
      return button;
    }));
    dialog.onclose = () => resolve(null);
    dialog.showModal();
  });
}

/** Ask for the token. Resolves to the text, or to null. */
export async function askToken() {
  const input = make("input");
  input.type = "password";
  input.autocomplete = "off";
  const choice = await ask(word("token"), [make("p", "", word("askToken")), input], [[word("cancel"), null], [word("ok"), true]]);
  return choice ? input.value.trim() : null;
}

/** Show a text that was read from a file, with the notes about what is missing. */
export function preview(file) {
  const notes = file.notes.map((note) => make("p", "warning", note));
  return ask(file.name, [...notes, make("pre", "preview", file.text)], [[word("close"), null]]);
}
