//! One event of a request: read to the letter, its time set right, or refused for itself.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use shared::{
    kinds::Violation,
    ledger::events::{AHEAD, NewEvent},
    tenant::{EventsDeclaration, check_user},
};
use utoipa::ToSchema;

use super::{MOST_EVENTS, body::Form};
use crate::problem::{Code, Problem};

/// The longest id, and the longest type, in characters.
const LONGEST_ID: usize = 255;
const LONGEST_TYPE: usize = 100;

/// The largest event, in bytes of JSON.
const LARGEST: usize = 16 * 1024;

/// By how much a sender's clock may be off before its times are corrected.
const SKEW: TimeDelta = TimeDelta::seconds(60);

/// An event.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewEvent)]
#[serde(deny_unknown_fields)]
pub struct EventBody {
    /// Its id, of your making: what has the same is the same event, and counts once. A UUID of version 7 is stored best.
    #[schema(min_length = 1, max_length = 255, example = "0197a1b2-0000-7000-8000-000000000001")]
    id: String,
    /// What happened, as the manifest's metrics name it.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 100, example = "prompt_run")]
    sort: String,
    /// Whose it is. Once this user is erased the event is gone.
    #[schema(min_length = 1, max_length = 255)]
    user: Option<String>,
    /// When it happened (RFC 3339); when it arrives, if absent.
    #[schema(value_type = Option<DateTime<Utc>>)]
    time: Option<String>,
    /// What metrics read: values, dimensions, conditions. Numbers are read as 64-bit floats, whole ones up to 64 bits.
    #[serde(default)]
    #[schema(required = false, value_type = Object)]
    properties: Map<String, Value>,
}

/// Why an event is not taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub detail: String,
}

fn refused(code: &'static str, detail: impl Into<String>) -> Refused {
    Refused { code, detail: detail.into() }
}

/// By what times are judged.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    now: DateTime<Utc>,
    oldest: DateTime<Utc>,
    keep_days: u32,
    /// What is added to the sender's times.
    correction: TimeDelta,
}

impl Rules {
    /// Of a product, for what arrives `now` and was sent when the sender's clock showed `sent_at`.
    pub fn new(events: EventsDeclaration, now: DateTime<Utc>, sent_at: Option<DateTime<Utc>>) -> Self {
        let keep_days = events.keep_days();
        let skew = sent_at.map_or(TimeDelta::zero(), |sent_at| now - sent_at);
        let correction = if skew.abs() >= SKEW { skew } else { TimeDelta::zero() };
        // Whole days are kept, so that of a day either all is there or nothing.
        let oldest = (now - TimeDelta::days(i64::from(keep_days))).date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
        Self { now, oldest, keep_days, correction }
    }

    fn time(&self, written: Option<&str>) -> Result<DateTime<Utc>, Refused> {
        let Some(text) = written else { return Ok(self.now) };
        let time = DateTime::parse_from_rfc3339(text).map_err(|_| {
            let shown: String = text.chars().take(50).collect();
            refused("invalid", format!("/time: `{shown}` is no time of RFC 3339; send for example 2026-11-21T12:00:00Z"))
        })?;
        let time = time.to_utc().checked_add_signed(self.correction).unwrap_or(self.now);
        // What Postgres stores.
        let time = DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(self.now);
        if time > self.now + AHEAD {
            let detail = format!(
                "/time: is more than {} minutes ahead of our clock; set the sender's clock, or send X-Sent-At",
                AHEAD.num_minutes()
            );
            return Err(refused("time_in_future", detail));
        }
        if time < self.oldest {
            let detail = format!("/time: is older than {} days, for which this product keeps events", self.keep_days);
            return Err(refused("time_too_old", detail));
        }
        Ok(time.min(self.now))
    }

    fn read(&self, text: &[u8]) -> Result<NewEvent, Refused> {
        if text.len() > LARGEST {
            return Err(refused("too_large", format!("has {} bytes; {LARGEST} are the most", text.len())));
        }
        if text.first() != Some(&b'{') {
            return Err(refused("invalid", "is no JSON object"));
        }
        let event: EventBody = serde_json::from_slice(text).map_err(|error| refused("invalid", error.to_string()))?;
        check_line("/id", &event.id, LONGEST_ID)?;
        check_line("/type", &event.sort, LONGEST_TYPE)?;
        if let Some(Err(detail)) = event.user.as_deref().map(check_user) {
            return Err(refused("invalid", format!("/user: {detail}")));
        }
        // Rare, so it is looked for where its escape is.
        if memchr_nul(text) && event.properties.iter().any(|(name, value)| name.contains('\0') || has_nul(value)) {
            return Err(refused("invalid", "/properties: contains a NUL character (\\u0000), which can't be stored; remove it"));
        }
        Ok(NewEvent {
            time: self.time(event.time.as_deref())?,
            id: event.id,
            sort: event.sort,
            user: event.user,
            properties: event.properties,
        })
    }
}

fn memchr_nul(text: &[u8]) -> bool {
    text.windows(6).any(|six| six == b"\\u0000")
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn check_line(pointer: &str, text: &str, longest: usize) -> Result<(), Refused> {
    if !(1..=longest).contains(&text.chars().count()) || text.chars().any(char::is_control) {
        return Err(refused("invalid", format!("{pointer}: must have 1 to {longest} characters on one line")));
    }
    Ok(())
}

/// The list, its events unread.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// Reads all events of a body, each with its place: in the list, or its line. Lines with nothing in them are none, nor is a byte order mark.
pub fn read_all(bytes: &[u8], form: Form, rules: &Rules) -> Result<super::Read, Problem> {
    match form {
        Form::Json => {
            let list: List<'_> = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
                serde_json::error::Category::Data => Problem::invalid(vec![Violation::new(
                    "/events",
                    "must be a list of events: send {\"events\": [...]}, and nothing beside it",
                )]),
                _ => Problem::new(Code::JsonMalformed, format!("{error}.")),
            })?;
            check_count(list.events.len())?;
            Ok(list.events.iter().map(|event| rules.read(event.get().as_bytes())).enumerate().collect())
        }
        Form::Lines => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
            let lines: Vec<(usize, &[u8])> = lines.filter(|(_, line)| !line.is_empty()).collect();
            check_count(lines.len())?;
            Ok(lines.into_iter().map(|(place, line)| (place, rules.read(line))).collect())
        }
    }
}

fn check_count(count: usize) -> Result<(), Problem> {
    if (1..=MOST_EVENTS).contains(&count) {
        return Ok(());
    }
    Err(Problem::invalid(vec![Violation::new("/events", format!("has {count} events; 1 to {MOST_EVENTS} are allowed"))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(sent_at: Option<&str>) -> Rules {
        Rules::new(EventsDeclaration::default(), "2026-11-21T12:00:00Z".parse().unwrap(), sent_at.map(|at| at.parse().unwrap()))
    }

    #[test]
    fn times_are_set_right_by_rules() {
        let of = |sent_at, time| rules(sent_at).time(Some(time)).map(|time| time.to_rfc3339()).map_err(|refused| refused.code);
        let at = |time: &str| Ok(format!("2026-11-21T{time}+00:00"));
        assert_eq!(of(None, "2026-11-21T11:00:00+01:00"), at("10:00:00"));
        assert_eq!(of(None, "2026-11-21T12:10:00Z"), at("12:00:00"));
        assert_eq!(of(None, "2026-11-21T12:10:00.000001Z"), Err("time_in_future"));
        assert_eq!(of(None, "2026-08-23T00:00:00Z").unwrap(), "2026-08-23T00:00:00+00:00");
        assert_eq!(of(None, "2026-08-22T23:59:59Z"), Err("time_too_old"));
        assert_eq!(of(None, "yesterday"), Err("invalid"));
        // The sender's clock is an hour ahead; half a minute may be the way.
        assert_eq!(of(Some("2026-11-21T13:00:00Z"), "2026-11-21T12:59:00Z"), at("11:59:00"));
        assert_eq!(of(Some("2026-11-21T11:59:30Z"), "2026-11-21T11:59:00Z"), at("11:59:00"));
        assert_eq!(rules(None).time(None).unwrap().to_rfc3339(), "2026-11-21T12:00:00+00:00");
    }

    #[test]
    fn each_event_is_refused_for_itself() {
        let body = r#"{"events": [{"id": "1", "type": "a"}, 7, {"id": "", "type": "a"}, {"id": "2"}, {"id": "3", "type": "a", "colour": 1},
            {"id": "4", "type": "a", "user": "a b"}, {"id": "5", "type": "a", "properties": {"a": ["\u0000"]}}, {"id": "6", "type": "a", "properties": []},
            {"id": "7", "type": "a", "properties": {"a": "\\u0000", "b": 1e400}}, {"id": "8", "type": "a", "properties": {"a": "\\u0000"}}, {"id": "9", "type": "a", "properties": {"a": "\ud800"}}]}"#;
        let read = read_all(body.as_bytes(), Form::Json, &rules(None)).unwrap();
        let taken: Vec<_> = read.iter().filter(|(_, event)| event.is_ok()).map(|(index, _)| *index).collect();
        assert_eq!(taken, [0, 9], "{read:?}");
        let lines = "\u{feff}{\"id\": \"1\", \"type\": \"a\"}\r\n\nno json\n{\"id\": \"2\", \"type\": \"a\"}\n\n";
        let read = read_all(lines.as_bytes(), Form::Lines, &rules(None)).unwrap();
        let read: Vec<_> = read.iter().map(|(line, event)| (*line, event.is_ok())).collect();
        assert_eq!(read, [(0, true), (2, false), (3, true)]);
    }

    #[test]
    fn what_is_no_list_is_refused_whole() {
        for (body, code) in [
            ("{\"events\": [", Code::JsonMalformed),
            ("[]", Code::ValidationFailed),
            ("{\"events\": []}", Code::ValidationFailed),
            ("{\"events\": [{}], \"more\": 1}", Code::ValidationFailed),
            ("{\"events\": {}}", Code::ValidationFailed),
        ] {
            assert_eq!(read_all(body.as_bytes(), Form::Json, &rules(None)).unwrap_err().code(), code, "{body}");
        }
        let many = "{}\n".repeat(MOST_EVENTS + 1);
        assert_eq!(read_all(many.as_bytes(), Form::Lines, &rules(None)).unwrap_err().code(), Code::ValidationFailed);
    }
}
