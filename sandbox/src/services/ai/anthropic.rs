//! Anthropic's messages (<https://platform.claude.com/docs/en/api/messages>).

use serde_json::{Value, json};

use super::{Question, Refusal, Said};

/// The parameters that there are.
const FIELDS: [&str; 17] = [
    "model",
    "messages",
    "max_tokens",
    "system",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "stream",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "service_tier",
    "container",
    "cache_control",
];

/// Reads a question as the vendor does; in its words what is wrong.
pub(super) fn question(body: &Value) -> Result<Question, Refusal> {
    let fields = body.as_object().ok_or("The request body is not valid JSON")?;
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("{unknown}: Extra inputs are not permitted").into());
    }
    let model = match &body["model"] {
        Value::Null => return Err("model: Field required".into()),
        Value::String(model) if model.is_empty() => return Err("model: String should have at least 1 character".into()),
        Value::String(model) => model,
        _ => return Err("model: Input should be a valid string".into()),
    };
    let most_tokens = match &body["max_tokens"] {
        Value::Null => return Err("max_tokens: Field required".into()),
        Value::String(_) => return Err("max_tokens: Input should be a valid integer, unable to parse string as an integer".into()),
        value => value.as_i64().ok_or("max_tokens: Input should be a valid integer")?,
    };
    let most_tokens = u64::try_from(most_tokens).ok().filter(|most| *most > 0).ok_or("max_tokens: must be greater than or equal to 1")?;
    for name in ["temperature", "top_p"] {
        match &body[name] {
            Value::Null => {}
            Value::String(_) => {
                return Err(format!("{name}: Input should be a valid number, unable to parse string as a number").into());
            }
            value => match value.as_f64() {
                None => return Err(format!("{name}: Input should be a valid number").into()),
                Some(number) if !(0.0..=1.0).contains(&number) => return Err(format!("{name}: range: 0..1").into()),
                Some(_) => {}
            },
        }
    }
    if !matches!(body["stream"], Value::Null | Value::Bool(_)) {
        return Err("stream: Input should be a valid boolean, unable to interpret input".into());
    }
    let stops = &body["stop_sequences"];
    if !stops.is_null() && !stops.as_array().is_some_and(|stops| stops.iter().all(Value::is_string)) {
        return Err("stop_sequences: Input should be a valid list of strings".into());
    }
    let system = match &body["system"] {
        Value::Null => String::new(),
        system => text_of(system, "system")?,
    };
    let messages = match &body["messages"] {
        Value::Null => return Err("messages: Field required".into()),
        Value::Array(messages) if messages.is_empty() => return Err("messages: at least one message is required".into()),
        Value::Array(messages) => messages,
        _ => return Err("messages: Input should be a valid list".into()),
    };
    let mut question =
        Question { model: model.to_owned(), size: system.len(), counted: true, most_tokens: Some(most_tokens), ..Question::default() };
    for (place, message) in messages.iter().enumerate() {
        if !message.is_object() {
            return Err(format!("messages.{place}: Input should be a valid dictionary or object to extract fields from").into());
        }
        let role = match &message["role"] {
            Value::Null => return Err(format!("messages.{place}.role: Field required").into()),
            role => role.as_str().unwrap_or_default(),
        };
        if !["user", "assistant"].contains(&role) {
            return Err(format!("messages: Unexpected role \"{role}\". The Messages API accepts a top-level `system` parameter").into());
        }
        if message["content"].is_null() {
            return Err(format!("messages.{place}.content: Field required").into());
        }
        let text = text_of(&message["content"], &format!("messages.{place}.content"))?;
        // What blocks hold beside text is not looked at.
        let is_all_text = message["content"].as_array().is_none_or(|blocks| blocks.iter().all(|block| block["type"] == "text"));
        if text.is_empty() && is_all_text {
            return Err("messages: text content blocks must be non-empty".into());
        }
        question.size += text.len();
        if role == "user" {
            question.prompt = text;
        }
    }
    let format = &body["output_config"]["format"];
    if format["type"].as_str() == Some("json_schema") {
        question.schema = Some(format["schema"].clone());
    }
    question.streamed = body["stream"].as_bool().unwrap_or_default();
    Ok(question)
}

/// The text at a place, of one string or of blocks.
fn text_of(content: &Value, place: &str) -> Result<String, Refusal> {
    let Value::Array(blocks) = content else {
        return content.as_str().map(str::to_owned).ok_or_else(|| format!("{place}: Input should be a valid list").into());
    };
    for (number, block) in blocks.iter().enumerate() {
        if !block.is_object() {
            return Err(format!("{place}.{number}: Input should be a valid dictionary or object to extract fields from").into());
        }
        if block["type"] == "text" && !block["text"].is_string() {
            return Err(format!("{place}.{number}.text: Field required").into());
        }
    }
    Ok(blocks.iter().filter_map(|block| block["text"].as_str()).collect())
}

fn finish(said: &Said) -> &str {
    let by_itself = match (said.refusal, said.is_cut) {
        (true, _) => "refusal",
        (false, true) => "max_tokens",
        (false, false) => "end_turn",
    };
    said.finish.as_deref().unwrap_or(by_itself)
}

fn tokens(input: u64, output: u64) -> Value {
    json!({"input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": output, "service_tier": "standard"})
}

/// A whole answer.
pub(super) fn message(number: usize, question: &Question, said: &Said) -> Value {
    json!({
        "id": format!("msg_{number}"), "type": "message", "role": "assistant", "model": question.model,
        "content": [{"type": "text", "text": said.text}], "stop_reason": finish(said), "stop_sequence": null,
        "usage": tokens(said.input_tokens, said.output_tokens),
    })
}

/// The events of a stream: its beginning, one for each word, and its end.
pub(super) fn events(number: usize, question: &Question, said: &Said) -> (Vec<String>, Vec<String>, Vec<String>) {
    let event = |name: &str, mut data: Value| {
        data["type"] = json!(name);
        format!("event: {name}\ndata: {data}\n\n")
    };
    let message = json!({
        "id": format!("msg_{number}"), "type": "message", "role": "assistant", "model": question.model, "content": [], "stop_reason": null,
        "stop_sequence": null, "usage": tokens(said.input_tokens, 1),
    });
    let begin = vec![
        event("message_start", json!({"message": message})),
        event("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}})),
        event("ping", json!({})),
    ];
    let word = |word: String| event("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": word}}));
    let end = vec![
        event("content_block_stop", json!({"index": 0})),
        event(
            "message_delta",
            json!({"delta": {"stop_reason": finish(said), "stop_sequence": null}, "usage": {"output_tokens": said.output_tokens}}),
        ),
        event("message_stop", json!({})),
    ];
    (begin, said.words().into_iter().map(word).collect(), end)
}

/// An error, plain or within a stream.
pub(super) fn error(status: u16, code: Option<&str>, message: &str) -> Value {
    let usual = match status {
        400 => "invalid_request_error",
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": code.unwrap_or(usual), "message": message}, "request_id": null})
}

fn model(name: &str) -> Value {
    json!({"type": "model", "id": name, "display_name": name, "created_at": "2025-11-20T00:00:00Z"})
}

/// The models.
pub(super) fn models(names: &[&str]) -> Value {
    let data: Vec<_> = names.iter().map(|name| model(name)).collect();
    json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()})
}

/// One of the models, or what is said of one that is not there.
pub(super) fn one_model(names: &[&str], name: &str) -> Result<Value, Value> {
    if names.contains(&name) { Ok(model(name)) } else { Err(error(404, None, &format!("model: {name}"))) }
}
