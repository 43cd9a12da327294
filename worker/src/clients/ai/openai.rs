//! Chat completions, as `OpenAI` has them and others speak them too
//! (<https://platform.openai.com/docs/api-reference/chat>).

use serde::Deserialize;
use serde_json::{Value, json};
use shared::tenant::Provider;

use super::{AiError, Finish, Gathering, Question, Reply, Usage};

/// The body of a call.
pub fn request(provider: &Provider, question: &Question, streamed: bool) -> Value {
    let mut messages: Vec<Value> = question.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    messages.extend(question.turns.iter().map(|turn| json!({"role": turn.role.word(), "content": turn.text})));
    let mut body = json!({ "model": question.model, "messages": messages });
    let Some(fields) = body.as_object_mut() else { return body };
    fields.insert(bound_of(provider).to_owned(), question.max_tokens.into());
    if let Some(temperature) = question.temperature {
        fields.insert("temperature".to_owned(), temperature.into());
    }
    if let Some(schema) = &question.schema {
        // Not `strict`: that takes a dialect of JSON Schema in which every field is required. The answer is validated by us.
        let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
        fields.insert("response_format".to_owned(), format);
    }
    if streamed {
        fields.insert("stream".to_owned(), true.into());
        // Else a stream says nothing of its tokens.
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    body
}

/// `OpenAI`'s newer models refuse `max_tokens`; servers that speak its dialect know no other.
fn bound_of(provider: &Provider) -> &'static str {
    let host = provider.base_url.host_str().unwrap_or_default();
    let is_of = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    if is_of("openai.com") || is_of("azure.com") { "max_completion_tokens" } else { "max_tokens" }
}

#[derive(Debug, Deserialize)]
struct Completion {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Tokens>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    /// Of a whole answer.
    #[serde(default)]
    message: Option<Words>,
    /// Of a stream.
    #[serde(default)]
    delta: Option<Words>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Words {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Tokens {
    #[serde(default, deserialize_with = "super::tokens")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "super::tokens")]
    completion_tokens: Option<u64>,
}

impl Tokens {
    /// Both, or nothing is said.
    fn usage(self) -> Option<Usage> {
        Some(Usage { input_tokens: self.prompt_tokens?, output_tokens: self.completion_tokens?, estimated: false })
    }
}

fn finish(reason: &str) -> Finish {
    match reason {
        // Google's and some others' dialects say it in capitals.
        "stop" | "STOP" | "eos" | "end_turn" => Finish::Complete,
        "length" | "max_tokens" | "MAX_TOKENS" => Finish::Length,
        "content_filter" | "SAFETY" => Finish::ContentFilter,
        _ => Finish::Unknown,
    }
}

/// Reads a whole answer.
pub fn reply(body: &[u8]) -> Result<Reply, AiError> {
    let mut gathered = Gathered::default();
    gathered.take(serde_json::from_slice(body).map_err(|error| AiError::unreadable(&error))?)?;
    if !gathered.answered {
        return Err(AiError::Unreadable("it has no choices".to_owned()));
    }
    Ok(Box::new(gathered).reply())
}

/// What came so far.
#[derive(Debug, Default)]
pub struct Gathered {
    reply: Reply,
    answered: bool,
    refused: bool,
    done: bool,
}

impl Gathered {
    /// Takes a piece in; what it adds to the text.
    fn take(&mut self, piece: Completion) -> Result<String, AiError> {
        if let Some(error) = piece.error {
            return Err(AiError::in_stream(&error));
        }
        self.reply.request_id = self.reply.request_id.take().or(piece.id);
        self.reply.model = self.reply.model.take().or(piece.model);
        if let Some(usage) = piece.usage.and_then(Tokens::usage) {
            self.reply.usage = usage;
        }
        let mut added = String::new();
        for choice in piece.choices.into_iter().filter(|choice| choice.index == 0) {
            self.answered = true;
            let words = choice.message.or(choice.delta).unwrap_or_default();
            self.refused |= words.refusal.as_ref().is_some_and(|text| !text.is_empty());
            for text in words.content.into_iter().chain(words.refusal) {
                added.push_str(&text);
            }
            if let Some(reason) = choice.finish_reason {
                self.reply.finish = finish(&reason);
                self.done = true;
            }
        }
        self.reply.text.push_str(&added);
        Ok(added)
    }
}

impl Gathering for Gathered {
    fn add(&mut self, event: &str) -> Result<String, AiError> {
        if event.trim() == "[DONE]" {
            return Ok(String::new());
        }
        self.take(serde_json::from_str(event).map_err(|error| AiError::unreadable(&error))?)
    }

    fn is_whole(&self) -> bool {
        self.done
    }

    fn reply(self: Box<Self>) -> Reply {
        let finish = if self.refused { Finish::Refusal } else { self.reply.finish };
        Reply { finish, ..self.reply }
    }
}
