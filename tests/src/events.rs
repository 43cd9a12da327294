//! A listener to server-sent events, as a browser's `EventSource` reads them.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::{Client, PATIENCE};

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its id, which a listener names when it connects again.
    pub id: String,
    /// `changed`, `ended` or `snapshot`.
    pub name: String,
    /// What it tells.
    pub data: Value,
}

/// A stream that is open.
#[derive(Debug)]
pub struct Events {
    response: Response,
    text: Vec<u8>,
    /// What the stream said of when to connect again, in milliseconds.
    pub retry: Option<u64>,
    /// Comments so far.
    pub beats: usize,
}

impl Client {
    /// A request for a stream, which may last.
    pub fn listen(&self, path: &str, last_event_id: Option<&str>) -> RequestBuilder {
        let request = self.request(Method::GET, path).header("Accept", "text/event-stream").timeout(Duration::from_secs(3_600));
        match last_event_id {
            Some(id) => request.header("Last-Event-ID", id),
            None => request,
        }
    }

    /// Opens a stream that must be there.
    pub async fn events(&self, path: &str, last_event_id: Option<&str>) -> Events {
        let response = self.listen(path, last_event_id).send().await.unwrap_or_else(|error| panic!("no answer: {error:?}"));
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events::of(response)
    }
}

impl Events {
    /// Reads an answer that is a stream.
    #[must_use]
    pub fn of(response: Response) -> Self {
        Self { response, text: Vec::new(), retry: None, beats: 0 }
    }

    /// The next event; `None` at the stream's end, or where it breaks off.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(event) = self.read(&String::from_utf8(block).expect("streams are UTF-8")) {
                    return Some(event);
                }
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.text.extend_from_slice(&chunk),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The next event, which must come.
    pub async fn must(&mut self, what: &str) -> Event {
        let next = tokio::time::timeout(PATIENCE, self.next()).await;
        next.unwrap_or_else(|_| panic!("{what} did not come")).unwrap_or_else(|| panic!("the stream ended before {what}"))
    }

    /// Waits for an event that is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.must(what).await;
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Waits for the stream's end; what came before it.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut rest = Vec::new();
        let read = async {
            while let Some(event) = self.next().await {
                rest.push(event);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the stream ends");
        rest
    }

    fn read(&mut self, block: &str) -> Option<Event> {
        let (mut id, mut name, mut data) = (String::new(), String::new(), None);
        for line in block.lines() {
            match line.split_once(':') {
                Some(("", _)) => self.beats += 1,
                Some((field, value)) => match (field, value.strip_prefix(' ').unwrap_or(value)) {
                    ("id", value) => value.clone_into(&mut id),
                    ("event", value) => value.clone_into(&mut name),
                    ("retry", value) => self.retry = value.parse().ok(),
                    ("data", value) => data = Some(serde_json::from_str(value).expect("the data is JSON")),
                    (field, _) => panic!("an unknown field {field}"),
                },
                None => {}
            }
        }
        data.map(|data| Event { id, name, data })
    }
}
