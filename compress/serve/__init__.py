"""`qcompress serve`: checkpoints behind a chat page and an OpenAI-compatible API. vLLM or transformers answers.

app         routes of the page and of /v1       documents   uploaded files as text, read in the sandbox
security    who may use it, and headers         schema      JSON schemas: limits, and answers validated
relay       one chat request and its answer     engine      vLLM as a child: sizes, command line, restart
page        HTML, JS and CSS                    fallback    transformers as a child, where vLLM is missing
"""
