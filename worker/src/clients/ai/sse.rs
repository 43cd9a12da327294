//! Server-sent events as providers send them: the data of each event, put together from pieces.
//!
//! What must stay true: a piece may end anywhere, within a character too; an event that has no end is not kept beyond a bound.

use super::AiError;

/// The longest event, in bytes.
const LONGEST_EVENT: usize = 1024 * 1024;

/// Puts events together.
#[derive(Debug, Default)]
pub struct Events {
    /// What has no line's end yet.
    rest: Vec<u8>,
    /// The data of the event that is being read.
    data: String,
}

impl Events {
    /// The data of the events that a piece completes. The names of events are left out: providers repeat them in the data.
    pub fn take(&mut self, piece: &[u8]) -> Result<Vec<String>, AiError> {
        let mut events = Vec::new();
        for byte in piece {
            if *byte != b'\n' {
                self.rest.push(*byte);
                if self.rest.len() + self.data.len() > LONGEST_EVENT {
                    return Err(AiError::TooLong);
                }
                continue;
            }
            let line = String::from_utf8_lossy(self.rest.strip_suffix(b"\r").unwrap_or(&self.rest));
            if line.is_empty() {
                if !self.data.is_empty() {
                    events.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
            self.rest.clear();
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let stream =
            "event: a\ndata: {\"x\": \"grüße\"}\n\n: comment\r\ndata:one\r\ndata: two\r\n\r\nid: 7\n\ndata: [DONE]\n\ndata: never ended"
                .as_bytes();
        let expected = ["{\"x\": \"grüße\"}", "one\ntwo", "[DONE]"];
        for size in 1..stream.len() {
            let mut events = Events::default();
            let got: Vec<_> = stream.chunks(size).flat_map(|piece| events.take(piece).unwrap()).collect();
            assert_eq!(got, expected, "{size}");
        }
        assert!(Events::default().take(&vec![b'a'; LONGEST_EVENT + 1]).is_err());
    }
}
