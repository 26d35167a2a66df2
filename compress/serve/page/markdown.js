// A model's answer as DOM nodes. Only text reaches the page: no HTML of the answer, no images, no automatic requests.
// Understood: headings, paragraphs, lists, tables, quotes, code, bold, italic, and links to http and https.

/** An element with a class and children, which are nodes or texts. */
export function make(tag, name = "", ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children);
  return node;
}

const BLOCKS = [
  [/^(`{3,}|~{3,})(.*)$/, fence],
  [/^(#{1,6})\s+(.*)$/, heading],
  [/^\s*\|.*\|\s*$/, table],
  [/^\s*([-*+]|\d{1,9}[.)])\s+/, list],
  [/^>\s?/, quote],
];

/** The nodes of a text. */
export function render(text) {
  const lines = text.split("\n");
  const nodes = [];
  let place = 0;
  while (place < lines.length) {
    if (!lines[place].trim()) { place += 1; continue; }
    const block = BLOCKS.find(([pattern]) => pattern.test(lines[place]));
    const [node, next] = (block ? block[1] : paragraph)(lines, place);
    nodes.push(node);
    place = next;
  }
  return nodes;
}

function paragraph(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !BLOCKS.some(([pattern]) => pattern.test(lines[end]))) end += 1;
  return [make("p", "", ...inline(lines.slice(start, end).join("\n"))), end];
}

function fence(lines, start) {
  const mark = lines[start].match(/^(`{3,}|~{3,})/)[1];
  let end = start + 1;
  while (end < lines.length && !lines[end].startsWith(mark)) end += 1;
  return [make("pre", "", make("code", "", lines.slice(start + 1, end).join("\n"))), end + 1];
}

function heading(lines, start) {
  const [, marks, text] = lines[start].match(/^(#{1,6})\s+(.*)$/);
  return [make(`h${Math.min(6, marks.length + 2)}`, "", ...inline(text)), start + 1];
}

function quote(lines, start) {
  let end = start;
  while (end < lines.length && lines[end].startsWith(">")) end += 1;
  const inner = lines.slice(start, end).map((line) => line.replace(/^>\s?/, ""));
  return [make("blockquote", "", ...inline(inner.join("\n"))), end];
}

function list(lines, start) {
  const pattern = /^\s*([-*+]|\d{1,9}[.)])\s+(.*)$/;
  const ordered = /^\s*\d/.test(lines[start]);
  const items = [];
  let end = start;
  for (; end < lines.length; end += 1) {
    const match = lines[end].match(pattern);
    if (match) items.push(match[2]);
    else if (/^\s+\S/.test(lines[end])) items[items.length - 1] += `\n${lines[end].trim()}`;
    else break;
  }
  const node = make(ordered ? "ol" : "ul", "", ...items.map((item) => make("li", "", ...inline(item))));
  if (ordered) node.start = parseInt(lines[start], 10);
  return [node, end];
}

function table(lines, start) {
  let end = start;
  const rows = [];
  for (; end < lines.length && /^\s*\|.*\|\s*$/.test(lines[end]); end += 1) {
    if (!/^[\s|:-]+$/.test(lines[end])) rows.push(lines[end].trim().slice(1, -1).split(/(?<!\\)\|/));
  }
  const row = (cells, tag) => make("tr", "", ...cells.map((cell) => make(tag, "", ...inline(cell.trim()))));
  const [head, ...body] = rows.length ? rows : [[]];
  const parts = [make("thead", "", row(head, "th")), make("tbody", "", ...body.map((cells) => row(cells, "td")))];
  return [make("div", "scroll", make("table", "", ...parts)), end];
}

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*])\*([^*\n]+)\*(?!\w)|(!?)\[([^\]\n]{0,200})\]\(([^()\s]{1,2000})(?:\s[^()\n]{0,200})?\)/g;

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g; // characters that reorder the text around them

/** The nodes of a text without blocks. An image becomes its source text. */
function inline(text) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[2] !== undefined) nodes.push(make("code", "", match[2]));
    else if (match[3] !== undefined) nodes.push(make("strong", "", match[3]));
    else if (match[4] !== undefined) nodes.push(make("em", "", match[4]));
    else nodes.push(match[5] ? match[0] : link(match[6], match[7], match[0]));
  }
  nodes.push(text.slice(last));
  return nodes.filter((node) => node !== "");
}

/** A link that shows its host, because the text can claim another one and must not reorder it. Anything but http and https stays text. */
function link(text, address, source) {
  let url;
  try { url = new URL(address); } catch { return source; }
  if (url.protocol !== "https:" && url.protocol !== "http:") return source;
  const host = make("bdi", "", `(${url.host})`);
  host.dir = "ltr";
  const node = make("a", "", make("bdi", "", text.replace(BIDI, "") || url.host), make("small", "", " ", host));
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  node.title = url.href;
  return node;
}
