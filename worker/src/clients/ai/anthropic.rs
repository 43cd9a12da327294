//! Anthropic's messages (<https://platform.claude.com/docs/en/api/messages>).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{AiError, Finish, Gathering, Question, Reply, Usage};

/// The body of a call.
pub fn request(question: &Question, streamed: bool) -> Value {
    let messages: Vec<Value> = question.turns.iter().map(|turn| json!({"role": turn.role.word(), "content": turn.text})).collect();
    let mut body = json!({ "model": question.model, "max_tokens": question.max_tokens, "messages": messages });
    let Some(fields) = body.as_object_mut() else { return body };
    if let Some(system) = &question.system {
        fields.insert("system".to_owned(), system.as_str().into());
    }
    if let Some(temperature) = question.temperature {
        // Theirs goes from 0 to 1.
        fields.insert("temperature".to_owned(), temperature.min(1.0).into());
    }
    if let Some(schema) = &question.schema {
        // https://platform.claude.com/docs/en/build-with-claude/structured-outputs
        fields.insert("output_config".to_owned(), json!({"format": {"type": "json_schema", "schema": schema}}));
    }
    if streamed {
        fields.insert("stream".to_owned(), true.into());
    }
    body
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    content: Vec<Block>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Debug, Deserialize)]
struct Block {
    /// Of text blocks; others (thinking) have none.
    #[serde(default)]
    text: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Tokens {
    #[serde(default, rename = "input_tokens", deserialize_with = "super::tokens")]
    input: Option<u64>,
    #[serde(default, rename = "cache_creation_input_tokens", deserialize_with = "super::tokens")]
    cache_written: Option<u64>,
    #[serde(default, rename = "cache_read_input_tokens", deserialize_with = "super::tokens")]
    cache_read: Option<u64>,
    #[serde(default, rename = "output_tokens", deserialize_with = "super::tokens")]
    output: Option<u64>,
}

/// One event of a stream; those that say nothing of these are passed over.
#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    usage: Option<Tokens>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    stop_reason: Option<String>,
}

fn finish(reason: &str) -> Finish {
    match reason {
        "end_turn" | "stop_sequence" => Finish::Complete,
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "refusal" => Finish::Refusal,
        _ => Finish::Unknown,
    }
}

/// Reads a whole answer.
pub fn reply(body: &[u8]) -> Result<Reply, AiError> {
    let message: Message = serde_json::from_slice(body).map_err(|error| AiError::unreadable(&error))?;
    if message.stop_reason.is_none() && message.content.is_empty() {
        return Err(AiError::Unreadable("it has neither content nor a reason to stop".to_owned()));
    }
    let mut gathered = Gathered::default();
    gathered.take(message);
    Ok(Box::new(gathered).reply())
}

/// What came so far.
#[derive(Debug, Default)]
pub struct Gathered {
    reply: Reply,
    /// Tokens of the question, and of the answer, as far as they were said.
    counted: (Option<u64>, Option<u64>),
    done: bool,
}

impl Gathered {
    fn take(&mut self, message: Message) {
        self.reply.request_id = message.id;
        self.reply.model = message.model;
        for block in message.content {
            self.reply.text.push_str(&block.text.unwrap_or_default());
        }
        self.ends(message.stop_reason);
        self.count(message.usage);
    }

    fn ends(&mut self, reason: Option<String>) {
        if let Some(reason) = reason {
            self.reply.finish = finish(&reason);
            self.done = true;
        }
    }

    /// The counts of a stream are cumulative: the last ones hold.
    fn count(&mut self, tokens: Option<Tokens>) {
        let Some(tokens) = tokens else { return };
        if let Some(input) = tokens.input {
            // They count those apart; all of them were the question's.
            let cached = tokens.cache_written.unwrap_or_default().saturating_add(tokens.cache_read.unwrap_or_default());
            self.counted.0 = Some(input.saturating_add(cached));
        }
        if let Some(output) = tokens.output {
            self.counted.1 = Some(output);
        }
        // Both, or nothing is said.
        if let (Some(input_tokens), Some(output_tokens)) = self.counted {
            self.reply.usage = Usage { input_tokens, output_tokens, estimated: false };
        }
    }
}

impl Gathering for Gathered {
    fn add(&mut self, event: &str) -> Result<String, AiError> {
        let event: Event = serde_json::from_str(event).map_err(|error| AiError::unreadable(&error))?;
        if event.kind == "error" {
            return Err(AiError::in_stream(&event.error.unwrap_or_default()));
        }
        if let Some(message) = event.message {
            self.take(message);
        }
        self.count(event.usage);
        let Some(delta) = event.delta else { return Ok(String::new()) };
        self.ends(delta.stop_reason);
        let words = delta.text.unwrap_or_default();
        self.reply.text.push_str(&words);
        Ok(words)
    }

    fn is_whole(&self) -> bool {
        self.done
    }

    fn reply(self: Box<Self>) -> Reply {
        self.reply
    }
}
