//! The vendors' own clients, by which the sandbox' server is judged: what they make of it is what our client may rely on.

use std::process::Stdio;

use acceptance::Client;
use sandbox::{
    Sandbox,
    judges::python,
    services::ai::{Answer, Trouble},
};
use serde_json::{Value, json};

/// Runs a script of Python with these packages; what it prints, as JSON.
async fn judge(packages: &'static [&'static str], script: &'static str, arguments: Vec<String>) -> Value {
    let run = move || {
        let mut python = python(packages).expect("python3 with pip");
        python.args(["-c", script]).args(arguments).stdin(Stdio::null());
        // Their clients read these where nothing is passed, and go through proxies.
        for name in
            ["OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        {
            python.env_remove(name).env_remove(name.to_lowercase());
        }
        let output = python.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn server() -> Sandbox {
    Sandbox::start(sandbox::Options::test().without_migrations()).await.expect("a sandbox")
}

fn script_errors(sandbox: &Sandbox) {
    let error = |status: u16, code: Option<&str>, headers: &[(&str, &str)]| Answer {
        trouble: Some(Trouble::Error {
            status,
            code: code.map(str::to_owned),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }),
        ..Answer::default()
    };
    sandbox.ai.script(error(429, None, &[("retry-after", "7")]));
    sandbox.ai.script(error(500, None, &[]));
}

#[tokio::test]
async fn the_client_of_openai_takes_the_sandbox_for_its_vendor() {
    const SCRIPT: &str = r#"
import json, sys, openai
url, key = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20)
said = {}
ask = lambda **more: client.chat.completions.create(model="gpt-test", messages=[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say ünïcode words."}], max_tokens=50, **more)
said["errors"] = []
for kind in (openai.RateLimitError, openai.InternalServerError):
    try:
        ask()
    except kind as error:
        said["errors"].append([error.status_code, error.response.headers.get("retry-after"), type(error.body).__name__])
plain = ask()
said["plain"] = [plain.choices[0].message.content, plain.choices[0].finish_reason, plain.usage.prompt_tokens, plain.usage.completion_tokens, plain._request_id]
chunks = list(ask(stream=True, stream_options={"include_usage": True}))
said["streamed"] = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
said["finish"] = [c.choices[0].finish_reason for c in chunks if c.choices][-1]
said["usage"] = chunks[-1].usage.completion_tokens
schema = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}}}
made = ask(response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
said["score"] = json.loads(made.choices[0].message.content)["score"]
said["models"] = [model.id for model in client.models.list()]
try:
    openai.OpenAI(base_url=url, api_key="sk-wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    said["auth"] = [error.status_code, error.code]
try:
    client.chat.completions.create(model="gpt-test", messages=[])
except openai.BadRequestError as error:
    said["bad"] = error.status_code
said["model"] = client.models.retrieve(said["models"][0]).id
try:
    client.models.retrieve("gpt-none")
except openai.NotFoundError as error:
    said["none"] = [error.status_code, error.code, error.body["message"]]
say = [{"role": "user", "content": "Say ünïcode words."}]
said["short"] = []
for bound in ("max_tokens", "max_completion_tokens"):
    short = client.chat.completions.create(model="gpt-test", messages=say, **{bound: 3})
    chunks = list(client.chat.completions.create(model="gpt-test", messages=say, stream=True, stream_options={"include_usage": True}, **{bound: 3}))
    said["short"].append([short.choices[0].message.content, short.choices[0].finish_reason, short.usage.completion_tokens,
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), [c.choices[0].finish_reason for c in chunks if c.choices][-1], chunks[-1].usage.completion_tokens])
said["refused"] = []
for wrong in (dict(temperature="hot"), dict(temperature=3), dict(max_tokens=5, max_completion_tokens=5), dict(max_tokens="many"), dict(max_tokens=0), dict(stream="yes"), dict(stop=7),
        dict(messages=[{"role": "user"}]), dict(messages=[{"role": "user", "content": None}]), dict(messages=[{"role": "user", "content": 7}]), dict(messages=["words"]), dict(messages="words"),
        dict(messages=[{"role": "robot", "content": "x"}]), dict(model=7)):
    try:
        # As it is sent: the client itself makes something of a `stream`.
        client.post("/chat/completions", body={**dict(model="gpt-test", messages=say), **wrong}, cast_to=object)
        said["refused"].append(None)
    except openai.BadRequestError as error:
        said["refused"].append([error.status_code, error.type, error.body["message"]])
# What has a function's answer in it, and an assistant that said nothing but asked for it.
turns = say + [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, {"role": "function", "name": "f", "content": "7"}]
said["function"] = client.chat.completions.create(model="gpt-test", messages=turns).choices[0].finish_reason
print(json.dumps(said))
"#;
    let sandbox = server().await;
    script_errors(&sandbox);
    let said = judge(&["openai==3.54.0"], SCRIPT, vec![sandbox.ai.url(), sandbox.ai.key().to_owned()]).await;
    assert_eq!(said["errors"], json!([[429, "7", "dict"], [500, null, "dict"]]), "{said}");
    let text = said["plain"][0].as_str().unwrap();
    assert!(text.contains("ünïcode") && said["streamed"] == text, "{said}");
    assert_eq!((&said["plain"][1], &said["finish"], &said["usage"]), (&"stop".into(), &"stop".into(), &said["plain"][3]));
    assert!(said["plain"][4].as_str().is_some_and(|id| id.starts_with("req_")), "{said}");
    assert!(said["score"].as_i64().is_some_and(|score| (0..=100).contains(&score)));
    assert_eq!(said["auth"], json!([401, "invalid_api_key"]));
    assert_eq!((&said["bad"], said["models"].as_array().map(Vec::len)), (&400.into(), Some(3)));
    assert_eq!(said["model"], said["models"][0]);
    assert_eq!(said["none"], json!([404, "model_not_found", "The model 'gpt-none' does not exist"]));
    // Cut where it may not be longer, as what is left of it is counted: four bytes to a token.
    let cut = text.get(..12);
    for short in said["short"].as_array().unwrap() {
        assert_eq!(*short, json!([cut, "length", 3, cut, "length", 3]));
    }
    refuses(
        &said["refused"],
        &[
            "temperature",
            "temperature",
            "max_completion_tokens",
            "max_tokens",
            "max_tokens",
            "stream",
            "stop",
            "messages[0].content",
            "content",
            "content",
            "messages[0]",
            "messages",
            "'robot'",
            "model",
        ],
        "invalid_request_error",
    );
    assert_eq!(said["function"], "stop");
    assert_eq!(sandbox.ai.calls().len(), 5 + 4 + 1, "what was refused was not asked");
}

#[tokio::test]
async fn the_client_of_anthropic_takes_the_sandbox_for_its_vendor() {
    const SCRIPT: &str = r#"
import json, sys, anthropic
url, key = sys.argv[1:]
client = anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=20)
said = {}
question = dict(model="claude-test", max_tokens=50, system="Be short.", messages=[{"role": "user", "content": "Say ünïcode words."}])
said["errors"] = []
for kind in (anthropic.RateLimitError, anthropic.InternalServerError):
    try:
        client.messages.create(**question)
    except kind as error:
        said["errors"].append([error.status_code, error.response.headers.get("retry-after"), error.body["error"]["type"]])
plain = client.messages.create(**question)
said["plain"] = [plain.content[0].text, plain.stop_reason, plain.usage.input_tokens, plain.usage.output_tokens, plain._request_id]
with client.messages.stream(**question) as stream:
    said["streamed"] = "".join(stream.text_stream)
    final = stream.get_final_message()
said["final"] = [final.stop_reason, final.usage.output_tokens]
said["events"] = [event.type for event in client.messages.create(stream=True, **question)]
schema = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}}}
made = client.messages.create(extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}}, **question)
said["score"] = json.loads(made.content[0].text)["score"]
said["models"] = [model.id for model in client.models.list()]
try:
    anthropic.Anthropic(base_url=url.removesuffix("/v1"), api_key="wrong", max_retries=0).messages.create(**question)
except anthropic.AuthenticationError as error:
    said["auth"] = [error.status_code, error.body["error"]["type"]]
said["model"] = client.models.retrieve(said["models"][0]).id
try:
    client.models.retrieve("claude-none")
except anthropic.NotFoundError as error:
    said["none"] = [error.status_code, error.body["error"]["type"], error.body["error"]["message"]]
short = client.messages.create(**{**question, "max_tokens": 3})
with client.messages.stream(**{**question, "max_tokens": 3}) as stream:
    streamed, final = "".join(stream.text_stream), stream.get_final_message()
said["short"] = [short.content[0].text, short.stop_reason, short.usage.output_tokens, streamed, final.stop_reason, final.usage.output_tokens]
said["refused"] = []
for wrong in (dict(temperature="hot"), dict(temperature=3), dict(max_tokens="many"), dict(max_tokens=0), dict(stream="yes"), dict(stop_sequences=7), dict(messages=[{"role": "user"}]),
        dict(messages=[{"role": "user", "content": 7}]), dict(messages=["words"]), dict(messages=[]), dict(messages=[{"role": "function", "content": "x"}]), dict(system=7), dict(model=7)):
    try:
        # As it is sent: the client itself makes something of a `stream`.
        client.post("/v1/messages", body={**question, **wrong}, cast_to=object)
        said["refused"].append(None)
    except anthropic.BadRequestError as error:
        said["refused"].append([error.status_code, error.body["error"]["type"], error.body["error"]["message"]])
print(json.dumps(said))
"#;
    let sandbox = server().await;
    script_errors(&sandbox);
    let said = judge(&["anthropic==2.12.0"], SCRIPT, vec![sandbox.ai.url(), sandbox.ai.key().to_owned()]).await;
    assert_eq!(said["errors"], json!([[429, "7", "rate_limit_error"], [500, null, "api_error"]]), "{said}");
    let text = said["plain"][0].as_str().unwrap();
    assert!(text.contains("ünïcode") && said["streamed"] == text, "{said}");
    assert_eq!((&said["plain"][1], &said["final"]), (&"end_turn".into(), &json!(["end_turn", said["plain"][3]])));
    let events: Vec<_> =
        said["events"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|name| *name != "content_block_delta").collect();
    assert!(
        events.starts_with(&["message_start", "content_block_start"])
            && events.ends_with(&["content_block_stop", "message_delta", "message_stop"]),
        "{events:?}"
    );
    assert!(said["score"].as_i64().is_some_and(|score| (0..=100).contains(&score)));
    assert_eq!((&said["auth"], said["models"].as_array().map(Vec::len)), (&json!([401, "authentication_error"]), Some(3)));
    assert_eq!(said["model"], said["models"][0]);
    assert_eq!(said["none"], json!([404, "not_found_error", "model: claude-none"]));
    let cut = text.get(..12);
    assert_eq!(said["short"], json!([cut, "max_tokens", 3, cut, "max_tokens", 3]));
    refuses(
        &said["refused"],
        &[
            "temperature",
            "temperature",
            "max_tokens",
            "max_tokens",
            "stream",
            "stop_sequences",
            "messages.0.content",
            "messages.0.content",
            "messages.0",
            "messages",
            "messages",
            "system",
            "model",
        ],
        "invalid_request_error",
    );
}

/// Each was refused, with 400, and names what is wrong.
fn refuses(said: &Value, named: &[&str], kind: &str) {
    let said = said.as_array().unwrap();
    assert_eq!(said.len(), named.len());
    for (refusal, name) in said.iter().zip(named) {
        assert_eq!((&refusal[0], &refusal[1]), (&json!(400), &json!(kind)), "{name}: {refusal}");
        assert!(refusal[2].as_str().is_some_and(|message| message.contains(name)), "{name}: {refusal}");
    }
}

/// A script that says how it ends, or how long it is, is what is answered, whatever was asked for.
#[tokio::test]
async fn a_scripted_answer_is_not_cut_where_it_says_its_tokens_or_its_end() {
    let sandbox = server().await;
    let text = "one two three four five";
    let said = |answer: Answer| Answer { text: Some(text.into()), ..answer };
    let client = Client::new(sandbox.ai.url(), sandbox.ai.key().to_owned());
    for (answer, tokens, finish) in [
        (Answer { tokens: Some((7, 9)), ..Answer::default() }, 9, "stop"),
        (Answer { finish: Some("content_filter".into()), ..Answer::default() }, 6, "content_filter"),
        (Answer { refusal: true, ..Answer::default() }, 6, "stop"),
    ] {
        sandbox.ai.script(said(answer.clone()));
        let body = json!({"model": "sandbox-small", "max_tokens": 2, "messages": [{"role": "user", "content": "Say it."}]});
        let whole = client.post("/chat/completions", &body).await.expect(200);
        let (choice, counted) = (&whole["choices"][0], &whole["usage"]["completion_tokens"]);
        let words = if answer.refusal { &choice["message"]["refusal"] } else { &choice["message"]["content"] };
        assert_eq!((words, &choice["finish_reason"], counted), (&json!(text), &json!(finish), &json!(tokens)), "{whole}");
    }
}
