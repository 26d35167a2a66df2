// The words of the page in English and Chinese. Elements name them: data-text, data-title, data-placeholder.

const WORDS = {
  en: {
    other: "中文", new: "New", export: "Export", settings: "Settings", close: "Close", cancel: "Cancel",
    welcome: "Ask a question", send: "Send", stop: "Stop", edit: "Edit", retry: "Retry", copy: "Copy",
    welcomeText: "Attach pdf, Word, Excel, csv or text files. Select several models above to compare their answers.",
    privacy: "Conversations stay in this page. Nothing is stored on the server.",
    slow: "vLLM is not installed: transformers answers, and it is slow.",
    system: "System prompt", temperature: "Temperature", topP: "Top-p", maxTokens: "Longest answer, in tokens",
    jsonMode: "JSON answers", example: "Example", schema: "JSON schema (empty: any JSON)", attach: "Attach files",
    question: "Your question. Shift+Enter starts a new line.", editing: "You are changing an earlier message.",
    schemaGood: "The schema is accepted.", schemaNone: "Any JSON value is accepted.", choose: "choose …",
    tokens: "{n} tokens", about: "about {n} tokens", reading: "reading …", remove: "Remove", preview: "Preview",
    pages: "{n} pages", partial: "{n} of {of} parts",
    tooLong: "The files do not fit",
    tooLongText: "This conversation has {n} tokens with its files. {name} takes {context}, of which {reserve} are kept for the answer. What should be sent of the new files?",
    noRoom: "The conversation is too long even without the new files. Start a new one, or shorten the answer.",
    first: "The first part", best: "The parts that match the question", noMatch: "No part of the files matches the question.",
    waiting: "{n} requests wait before this one.", first_token: "first token {s} s", speed: "{n} tokens/s",
    stopped: "stopped", length: "The answer reached its longest length.", valid: "valid JSON", invalid: "not valid",
    download: "Download", busy: "Try again in {s} s.", lost: "The connection to the service is lost.",
    starting: "{name} is loading …", restarting: "{name} has stopped and is being restarted: {cause}",
    ended: "{name} has stopped: {cause}", token: "This service needs a token", ok: "OK", noModel: "Select a model.",
    askToken: "Enter the token that the operator of this service gave you.", you: "You", ready: "ready",
    markdown: "As Markdown", json: "As JSON",
  },
  zh: {
    other: "English", new: "新对话", export: "导出", settings: "设置", close: "关闭", cancel: "取消",
    welcome: "请提问", send: "发送", stop: "停止", edit: "编辑", retry: "重试", copy: "复制",
    welcomeText: "可以附上 pdf、Word、Excel、csv 或文本文件。在上方选择多个模型，即可并排比较它们的回答。",
    privacy: "对话只保存在本页面中，服务器不保存任何内容。",
    slow: "未安装 vLLM：由 transformers 回答，速度较慢。",
    system: "系统提示词", temperature: "温度", topP: "Top-p", maxTokens: "回答的最大长度（token）",
    jsonMode: "JSON 回答", example: "示例", schema: "JSON Schema（留空：任意 JSON）", attach: "添加文件",
    question: "输入问题，Shift+Enter 换行。", editing: "正在修改之前的消息。",
    schemaGood: "Schema 可用。", schemaNone: "接受任意 JSON。", choose: "请选择 …",
    tokens: "{n} 个 token", about: "约 {n} 个 token", reading: "正在读取 …", remove: "移除", preview: "预览",
    pages: "{n} 页", partial: "{of} 段中的 {n} 段",
    tooLong: "文件放不下",
    tooLongText: "连同文件，本对话共有 {n} 个 token。{name} 最多接受 {context} 个，其中 {reserve} 个留给回答。新文件要发送哪一部分？",
    noRoom: "即使不含新文件，对话也已过长。请新建对话，或缩短回答长度。",
    first: "开头部分", best: "与问题最相关的部分", noMatch: "文件中没有与问题相关的部分。",
    waiting: "前面还有 {n} 个请求在等待。", first_token: "首个 token {s} 秒", speed: "每秒 {n} 个 token",
    stopped: "已停止", length: "回答已达到最大长度。", valid: "JSON 有效", invalid: "无效",
    download: "下载", busy: "请在 {s} 秒后重试。", lost: "与服务的连接已断开。",
    starting: "{name} 正在加载 …", restarting: "{name} 已停止，正在重新启动：{cause}",
    ended: "{name} 已停止：{cause}", token: "此服务需要令牌", ok: "确定", noModel: "请选择一个模型。",
    askToken: "请输入服务管理员提供的令牌。", you: "你", ready: "就绪",
    markdown: "Markdown 格式", json: "JSON 格式",
  },
};

let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");

/** The text for a name, with {key} replaced by the value of that key. Numbers have separators. */
export function word(name, values = {}) {
  const shown = (value) => (typeof value === "number" ? value.toLocaleString(language) : String(value));
  return WORDS[language][name].replace(/\{(\w+)\}/g, (whole, key) => (key in values ? shown(values[key]) : whole));
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("language", language);
  translate();
}

/** Write the words into all elements that name one. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = word(one.dataset.text);
  for (const one of document.querySelectorAll("[data-title]")) {
    one.title = word(one.dataset.title);
    one.setAttribute("aria-label", one.title);
  }
  for (const one of document.querySelectorAll("[data-placeholder]")) one.placeholder = word(one.dataset.placeholder);
  document.getElementById("language").textContent = word("other");
}
