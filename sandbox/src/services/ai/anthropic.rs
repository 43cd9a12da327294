//! Anthropic's messages (<https://platform.claude.com/docs/en/api/messages>).

use serde_json::{Value, json};

use super::{Question, Said};

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
pub(super) fn question(body: &Value) -> Result<Question, String> {
    let fields = body.as_object().ok_or("The request body is not valid JSON")?;
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("{unknown}: Extra inputs are not permitted"));
    }
    let model = body["model"].as_str().filter(|model| !model.is_empty()).ok_or("model: Field required")?;
    body["max_tokens"].as_u64().filter(|tokens| *tokens > 0).ok_or("max_tokens: Field required")?;
    let messages =
        body["messages"].as_array().filter(|messages| !messages.is_empty()).ok_or("messages: at least one message is required")?;
    if body["temperature"].as_f64().is_some_and(|temperature| !(0.0..=1.0).contains(&temperature)) {
        return Err("temperature: range: 0..1".to_owned());
    }
    let mut question = Question { model: model.to_owned(), size: text_of(&body["system"]).len(), counted: true, ..Question::default() };
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        if !["user", "assistant"].contains(&role) {
            return Err(format!("messages: Unexpected role \"{role}\". The Messages API accepts a top-level `system` parameter"));
        }
        let text = text_of(&message["content"]);
        if text.is_empty() {
            return Err("messages: text content blocks must be non-empty".to_owned());
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

fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn finish(said: &Said) -> &str {
    said.finish.as_deref().unwrap_or(if said.refusal { "refusal" } else { "end_turn" })
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

/// The models.
pub(super) fn models(names: &[&str]) -> Value {
    let model = |name: &&str| json!({"type": "model", "id": name, "display_name": name, "created_at": "2025-11-20T00:00:00Z"});
    let data: Vec<_> = names.iter().map(model).collect();
    json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()})
}
