//! Chat completions (<https://platform.openai.com/docs/api-reference/chat>).

use serde_json::{Value, json};

use super::{Question, Said};

/// The parameters that there are, of those that can be sent to models of text.
const FIELDS: [&str; 30] = [
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stream",
    "stream_options",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "user",
    "seed",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "metadata",
    "store",
    "service_tier",
    "modalities",
    "prediction",
    "verbosity",
    "safety_identifier",
    "prompt_cache_key",
];

/// Reads a question as the vendor does; in its words what is wrong.
pub(super) fn question(body: &Value) -> Result<Question, String> {
    let fields = body.as_object().ok_or("We could not parse the JSON body of your request.")?;
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("Unrecognized request argument supplied: {unknown}"));
    }
    let model = body["model"].as_str().filter(|model| !model.is_empty()).ok_or("you must provide a model parameter")?;
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty()).ok_or("Invalid 'messages': empty array.")?;
    let mut question = Question { model: model.to_owned(), ..Question::default() };
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        if !["system", "developer", "user", "assistant", "tool"].contains(&role) {
            return Err(format!(
                "Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'."
            ));
        }
        let text = text_of(&message["content"]);
        question.size += text.len();
        if role == "user" {
            question.prompt = text;
        }
    }
    for bound in ["max_tokens", "max_completion_tokens"] {
        if fields.get(bound).is_some_and(|tokens| tokens.as_u64().is_none_or(|tokens| tokens == 0)) {
            return Err(format!("Invalid '{bound}': integer below minimum value."));
        }
    }
    let format = &body["response_format"];
    question.schema = match format["type"].as_str() {
        None | Some("text") => None,
        Some("json_object") => Some(json!({"type": "object"})),
        Some("json_schema") => {
            if format["json_schema"]["name"].as_str().is_none_or(str::is_empty) {
                return Err("Missing required parameter: 'response_format.json_schema.name'.".to_owned());
            }
            Some(format["json_schema"]["schema"].clone())
        }
        Some(other) => return Err(format!("Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'.")),
    };
    question.streamed = body["stream"].as_bool().unwrap_or_default();
    question.counted = body["stream_options"]["include_usage"].as_bool().unwrap_or_default();
    Ok(question)
}

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn usage(said: &Said) -> Value {
    json!({
        "prompt_tokens": said.input_tokens, "completion_tokens": said.output_tokens, "total_tokens": said.input_tokens + said.output_tokens,
    })
}

fn finish(said: &Said) -> &str {
    said.finish.as_deref().unwrap_or("stop")
}

/// A whole answer.
pub(super) fn completion(number: usize, created: u64, question: &Question, said: &Said) -> Value {
    let (content, refusal) = if said.refusal { (Value::Null, json!(said.text)) } else { (json!(said.text), Value::Null) };
    json!({
        "id": format!("chatcmpl-{number}"), "object": "chat.completion", "created": created, "model": question.model,
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": content, "refusal": refusal, "annotations": []},
            "logprobs": null, "finish_reason": finish(said),
        }],
        "usage": usage(said), "service_tier": "default", "system_fingerprint": "sandbox",
    })
}

/// The events of a stream: its beginning, one for each word, and its end.
pub(super) fn events(number: usize, created: u64, question: &Question, said: &Said) -> (Vec<String>, Vec<String>, Vec<String>) {
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": format!("chatcmpl-{number}"), "object": "chat.completion.chunk", "created": created, "model": question.model,
            "system_fingerprint": "sandbox", "choices": choices,
        });
        if question.counted
            && let Some(fields) = chunk.as_object_mut()
        {
            fields.insert("usage".to_owned(), usage);
        }
        format!("data: {chunk}\n\n")
    };
    let one =
        |delta: Value, finish: Value| chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]), Value::Null);
    let begin = vec![one(json!({"role": "assistant", "content": "", "refusal": null}), Value::Null)];
    let field = if said.refusal { "refusal" } else { "content" };
    let words = said.words().into_iter().map(|word| one(json!({field: word}), Value::Null)).collect();
    let mut end = vec![one(json!({}), json!(finish(said)))];
    if question.counted {
        end.push(chunk(json!([]), usage(said)));
    }
    end.push("data: [DONE]\n\n".to_owned());
    (begin, words, end)
}

/// An error, plain or within a stream.
pub(super) fn error(status: u16, code: Option<&str>, message: &str) -> Value {
    let (kind, usual) = match status {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        404 => ("invalid_request_error", Some("model_not_found")),
        429 => ("requests", Some("rate_limit_exceeded")),
        400..=499 => ("invalid_request_error", None),
        _ => ("server_error", None),
    };
    let code = code.or(usual);
    json!({"error": {"message": message, "type": if code == Some("insufficient_quota") { "insufficient_quota" } else { kind }, "param": null, "code": code}})
}

/// The models.
pub(super) fn models(names: &[&str]) -> Value {
    let data: Vec<_> =
        names.iter().map(|name| json!({"id": name, "object": "model", "created": 1_763_596_800, "owned_by": "sandbox"})).collect();
    json!({"object": "list", "data": data})
}
