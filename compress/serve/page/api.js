// Requests to the service that served this page. No other origin is ever asked.

let token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("token") || "";
if (location.hash) history.replaceState(null, "", location.pathname); // the token leaves the address bar
if (token) sessionStorage.setItem("token", token);

export function setToken(value) {
  token = value;
  sessionStorage.setItem("token", value);
}

/** An answer whose status is not 200: its message, status, and the seconds after which to try again. */
export class ServiceError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = parseInt(response.headers.get("retry-after") || "0", 10);
  throw new ServiceError(body.error?.message || `status ${response.status}`, response.status, wait);
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function post(path, body, signal) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal };
  return request(path, options);
}

export async function postJson(path, body) {
  return (await post(path, body)).json();
}

export async function upload(file) {
  const headers = { "content-type": "application/octet-stream" };
  const path = `/api/document?name=${encodeURIComponent(file.name)}`;
  return (await request(path, { method: "POST", body: file, headers })).json();
}

/** The events of a streamed chat answer, as objects. An event with an error is thrown. */
export async function* chat(body, signal) {
  const response = await post("/v1/chat/completions", { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ServiceError(event.error.message, event.error.code, 0);
      yield event;
    }
  }
}
