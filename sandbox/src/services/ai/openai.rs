//! Chat completions (<https://platform.openai.com/docs/api-reference/chat>).

use serde_json::{Value, json};

use super::{Question, Refusal, Said};

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

/// Parameters that are a number, with the least and the most.
const NUMBERS: [(&str, f64, f64); 4] =
    [("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("presence_penalty", -2.0, 2.0), ("frequency_penalty", -2.0, 2.0)];

/// Parameters that are a whole number, with the least and the most.
const INTEGERS: [(&str, i64, i64); 5] = [
    ("max_tokens", 1, i64::MAX),
    ("max_completion_tokens", 1, i64::MAX),
    ("n", 1, 128),
    ("top_logprobs", 0, 20),
    ("seed", i64::MIN, i64::MAX),
];

const BOOLEANS: [&str; 4] = ["stream", "logprobs", "store", "parallel_tool_calls"];

const STRINGS: [&str; 5] = ["user", "reasoning_effort", "verbosity", "safety_identifier", "prompt_cache_key"];

/// Reads a question as the vendor does; in its words what is wrong.
pub(super) fn question(body: &Value) -> Result<Question, Refusal> {
    let fields = body.as_object().ok_or("We could not parse the JSON body of your request.")?;
    if let Some(unknown) = fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("Unrecognized request argument supplied: {unknown}").into());
    }
    parameters(body)?;
    let model = match &body["model"] {
        Value::Null => return Err("you must provide a model parameter".into()),
        Value::String(model) if model.is_empty() => return Err("you must provide a model parameter".into()),
        Value::String(model) => model,
        other => return Err(wrong_type("model", "a string", other)),
    };
    let messages = match &body["messages"] {
        Value::Null => return Err(missing("messages")),
        Value::Array(messages) if messages.is_empty() => {
            return Err(Refusal {
                code: Some("empty_array"),
                ..about(
                    "messages",
                    "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.".to_owned(),
                )
            });
        }
        Value::Array(messages) => messages,
        other => return Err(wrong_type("messages", "an array of objects", other)),
    };
    let mut question = Question { model: model.to_owned(), ..Question::default() };
    for (place, message) in messages.iter().enumerate() {
        let text = said_in(message, &format!("messages[{place}]"))?;
        question.size += text.len();
        if message["role"] == "user" {
            question.prompt = text;
        }
    }
    let format = &body["response_format"];
    question.schema = match format["type"].as_str() {
        None | Some("text") => None,
        Some("json_object") => Some(json!({"type": "object"})),
        Some("json_schema") => {
            if format["json_schema"]["name"].as_str().is_none_or(str::is_empty) {
                return Err(missing("response_format.json_schema.name"));
            }
            Some(format["json_schema"]["schema"].clone())
        }
        Some(other) => {
            return Err(format!("Invalid value: '{other}'. Supported values are: 'json_object', 'json_schema', and 'text'.").into());
        }
    };
    question.streamed = body["stream"].as_bool().unwrap_or_default();
    question.counted = body["stream_options"]["include_usage"].as_bool().unwrap_or_default();
    question.most_tokens = ["max_tokens", "max_completion_tokens"].iter().find_map(|bound| body[*bound].as_u64());
    Ok(question)
}

/// Whether all parameters are of their types and within their bounds; one that is null is absent.
fn parameters(body: &Value) -> Result<(), Refusal> {
    let given = |name: &'static str| Some((name, &body[name])).filter(|(_, value)| !value.is_null());
    for (name, least, most) in NUMBERS {
        let Some((name, value)) = given(name) else { continue };
        let number = value.as_f64().ok_or_else(|| wrong_type(name, "a decimal", value))?;
        if number < least || number > most {
            let (which, sign, bound, code) = if number < least {
                ("below minimum", ">=", least, "decimal_below_min_value")
            } else {
                ("above maximum", "<=", most, "decimal_above_max_value")
            };
            let message = format!("Invalid '{name}': decimal {which} value. Expected a value {sign} {bound}, but got {number} instead.");
            return Err(Refusal { code: Some(code), ..about(name, message) });
        }
    }
    for (name, least, most) in INTEGERS {
        let Some((name, value)) = given(name) else { continue };
        let number = value.as_i64().ok_or_else(|| wrong_type(name, "an integer", value))?;
        if number < least || number > most {
            let (which, sign, bound, code) = if number < least {
                ("below minimum", ">=", least, "integer_below_min_value")
            } else {
                ("above maximum", "<=", most, "integer_above_max_value")
            };
            let message = format!("Invalid '{name}': integer {which} value. Expected a value {sign} {bound}, but got {number} instead.");
            return Err(Refusal { code: Some(code), ..about(name, message) });
        }
    }
    if given("max_tokens").is_some() && given("max_completion_tokens").is_some() {
        let message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.".to_owned();
        return Err(Refusal { code: Some("invalid_parameter_combination"), ..about("max_tokens", message) });
    }
    for (name, value) in BOOLEANS.into_iter().filter_map(given) {
        if !value.is_boolean() {
            return Err(wrong_type(name, "a boolean", value));
        }
    }
    for (name, value) in STRINGS.into_iter().filter_map(given) {
        if !value.is_string() {
            return Err(wrong_type(name, "a string", value));
        }
    }
    for (name, value) in ["response_format", "stream_options", "metadata", "logit_bias"].into_iter().filter_map(given) {
        if !value.is_object() {
            return Err(wrong_type(name, "an object", value));
        }
    }
    let is_stop =
        |value: &Value| value.is_string() || value.as_array().is_some_and(|all| all.len() <= 4 && all.iter().all(Value::is_string));
    match given("stop") {
        Some((name, value)) if !is_stop(value) => Err(wrong_type(name, "a string or an array of at most 4 strings", value)),
        _ => Ok(()),
    }
}

/// The text of a message at a place.
fn said_in(message: &Value, place: &str) -> Result<String, Refusal> {
    if !message.is_object() {
        return Err(wrong_type(place, "an object", message));
    }
    let role = match &message["role"] {
        Value::Null => return Err(missing(&format!("{place}.role"))),
        Value::String(role) => role.as_str(),
        other => return Err(wrong_type(&format!("{place}.role"), "a string", other)),
    };
    // `function` is what `tool` was before; it is taken still.
    if !["system", "developer", "user", "assistant", "tool", "function"].contains(&role) {
        let message =
            format!("Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'.");
        return Err(Refusal { code: Some("invalid_value"), ..about(&format!("{place}.role"), message) });
    }
    let at = |name: &str| format!("{place}.{name}");
    for (of, name) in [("function", "name"), ("tool", "tool_call_id")] {
        if role == of && !message[name].is_string() {
            return Err(missing(&at(name)));
        }
    }
    match &message["content"] {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            for (number, part) in parts.iter().enumerate() {
                if !part.is_object() {
                    return Err(wrong_type(&format!("{place}.content[{number}]"), "an object", part));
                }
                if part["type"] == "text" && !part["text"].is_string() {
                    return Err(missing(&format!("{place}.content[{number}].text")));
                }
            }
            Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect())
        }
        // Who asked for a call, or refused, has said nothing beside.
        Value::Null if role == "assistant" && ["tool_calls", "function_call", "refusal"].iter().any(|field| !message[*field].is_null()) => {
            Ok(String::new())
        }
        Value::Null if message.get("content").is_none() => Err(missing(&at("content"))),
        Value::Null => Err(about(&at("content"), "Invalid value for 'content': expected a string, got null.".to_owned())),
        other => Err(wrong_type(&at("content"), "a string or an array of objects", other)),
    }
}

fn about(parameter: &str, message: String) -> Refusal {
    Refusal { message, parameter: Some(parameter.to_owned()), code: None }
}

fn missing(parameter: &str) -> Refusal {
    Refusal { code: Some("missing_required_parameter"), ..about(parameter, format!("Missing required parameter: '{parameter}'.")) }
}

fn wrong_type(parameter: &str, expected: &str, value: &Value) -> Refusal {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let message = format!("Invalid type for '{parameter}': expected {expected}, but got {got} instead.");
    Refusal { code: Some("invalid_type"), ..about(parameter, message) }
}

fn usage(said: &Said) -> Value {
    json!({
        "prompt_tokens": said.input_tokens, "completion_tokens": said.output_tokens, "total_tokens": said.input_tokens + said.output_tokens,
    })
}

fn finish(said: &Said) -> &str {
    said.finish.as_deref().unwrap_or(if said.is_cut { "length" } else { "stop" })
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

/// A question that is refused.
pub(super) fn refused(refusal: &Refusal) -> Value {
    let mut body = error(400, refusal.code, &refusal.message);
    body["error"]["param"] = json!(refusal.parameter);
    body
}

fn model(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 1_763_596_800, "owned_by": "sandbox"})
}

/// The models.
pub(super) fn models(names: &[&str]) -> Value {
    json!({"object": "list", "data": names.iter().map(|name| model(name)).collect::<Vec<_>>()})
}

/// One of the models, or what is said of one that is not there.
pub(super) fn one_model(names: &[&str], name: &str) -> Result<Value, Value> {
    if names.contains(&name) {
        return Ok(model(name));
    }
    let mut body = error(404, None, &format!("The model '{name}' does not exist"));
    body["error"]["param"] = json!("model");
    Err(body)
}
