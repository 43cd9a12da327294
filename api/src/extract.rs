//! Reading what a client sent: JSON bodies and queries. Wrong input is named exactly: an RFC 6901 pointer, what was
//! wrong, what to send. Unknown fields are refused, since a misspelt option that silently does nothing is worse than an
//! error.

use std::{error::Error, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, error::Category};
use serde_path_to_error::Track;
use shared::kinds::{Violation, pointer_of_ignored};

use crate::problem::{Code, Problem};

/// The largest body, in bytes, where a route sets no limit of its own.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// The longest that a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(20);

/// The most fields that one answer complains about.
const MOST_VIOLATIONS: usize = 50;

/// A JSON body of at most `LIMIT` bytes, an object.
#[derive(Debug)]
pub struct Json<T, const LIMIT: usize = BODY_LIMIT>(pub T);

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Json<T, LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        let bytes = read(&parts.headers, body, LIMIT).await?;
        parse(&bytes).map(Self)
    }
}

/// The body is JSON, said so, and not compressed.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let media_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str);
    let advice = "send JSON, with the header `Content-Type: application/json`";
    match media_type {
        None => return Err(Problem::new(Code::ContentTypeUnsupported, format!("There is no Content-Type; {advice}."))),
        Some(Ok(value)) if is_json(value) => {}
        Some(_) => return Err(Problem::new(Code::ContentTypeUnsupported, format!("Only JSON in UTF-8 is read here; {advice}."))),
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(Problem::new(
            Code::ContentTypeUnsupported,
            "Compressed bodies are not read here; send the JSON as it is, without Content-Encoding.",
        )),
        _ => Ok(()),
    }
}

/// A body as it came, with its signature to be checked, of at most 64 KiB; [`parse`] reads it.
#[derive(Debug)]
pub struct Raw(pub Bytes);

/// The longest body that is taken from whoever has not proved yet who they are.
const RAW_LIMIT: usize = 64 * 1024;

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        read(&parts.headers, body, RAW_LIMIT).await.map(Self)
    }
}

/// A JSON body that may be left out, and is then the default.
#[derive(Debug)]
pub struct MaybeJson<T>(pub T);

impl<T: Default + DeserializeOwned, S: Send + Sync> FromRequest<S> for MaybeJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, BODY_LIMIT).await?;
        if bytes.trim_ascii().is_empty() { Ok(Self(T::default())) } else { parse(&bytes).map(Self) }
    }
}

/// `application/json` or a type that ends in `+json` (RFC 6839), in UTF-8 as RFC 8259 §8.1 wants.
fn is_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8"),
        _ => true,
    })
}

/// What the sender's clock showed when it sent, where it says so (`X-Sent-At`).
///
/// # Errors
/// [`Code::HeaderInvalid`].
pub fn when_sent(headers: &HeaderMap) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(value) = headers.get("x-sent-at") else { return Ok(None) };
    let time = value.to_str().ok().and_then(|text| DateTime::parse_from_rfc3339(text.trim()).ok());
    let invalid = || Problem::new(Code::HeaderInvalid, "X-Sent-At is no time of RFC 3339; send for example 2026-11-21T12:00:00Z.");
    time.map(|time| Some(time.to_utc())).ok_or_else(invalid)
}

/// Reads a body of at most `limit` bytes as it comes.
///
/// # Errors
/// [`Code::BodyTooLarge`], [`Code::BodyIncomplete`], [`Code::BodyTimeout`].
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    read_within(headers, body, limit, |_| Ok(())).await
}

/// Reads a body of at most `limit` bytes as it comes, as long as there is `room` for what has come.
///
/// # Errors
/// As [`read`], and those of `room`.
pub async fn read_within(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    mut room: impl FnMut(usize) -> Result<(), Problem> + Send,
) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("The body may have {limit} bytes at most; send less at once."));
    // Refused before a byte of it is read, where the client says how much there will be.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut body = Limited::new(body, limit);
    // In one piece: of many small ones each would take more than its bytes.
    let mut read = BytesMut::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if is_length_limit(&*error) {
                    too_large()
                } else {
                    Problem::new(Code::BodyIncomplete, "The body broke off before its end; send the request again.")
                }
            })?;
            if let Ok(data) = frame.into_data() {
                room(read.len() + data.len())?;
                read.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_DEADLINE, reading).await {
        Ok(Ok(())) => Ok(read.freeze()),
        Ok(Err(problem)) => Err(problem),
        Err(_) => {
            let detail = format!("The body did not arrive within {} s; send the request again.", BODY_DEADLINE.as_secs());
            Err(Problem::new(Code::BodyTimeout, detail))
        }
    }
}

fn is_length_limit(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Reads a whole JSON text, an object, as a `T`.
///
/// # Errors
/// `json_malformed` for what is no JSON, `validation_failed` for what is no `T`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would also read an array as a struct, field by field.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(IgnoredAny) => Problem::invalid(vec![Violation::new("", "must be a JSON object")]),
            Err(error) => malformed(bytes, &error),
        });
    }
    let mut track = Track::new();
    let mut unknown = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read: Result<T, _> = serde_ignored::deserialize(tracked, |path| {
        if unknown.len() < MOST_VIOLATIONS {
            unknown.push(Violation::new(pointer_of_ignored(&path), UNKNOWN_FIELD));
        }
    });
    let error = match read.and_then(|value| json.end().map(|()| value)) {
        Ok(value) if unknown.is_empty() => return Ok(value),
        Ok(_) => return Err(Problem::invalid(unknown)),
        Err(error) => error,
    };
    match error.classify() {
        Category::Data => {
            unknown.push(Violation::unreadable(&track.path(), &error.to_string()));
            Err(Problem::invalid(unknown))
        }
        Category::Syntax | Category::Eof | Category::Io => Err(malformed(bytes, &error)),
    }
}

/// Reads JSON that was read before, an object, as a `T`: all that is wrong, by its place in it.
///
/// # Errors
/// The violations.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, Vec<Violation>> {
    if !value.is_object() {
        return Err(vec![Violation::new("", "must be an object")]);
    }
    let mut track = Track::new();
    let mut unknown = Vec::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read: Result<T, _> = serde_ignored::deserialize(tracked, |path| {
        if unknown.len() < MOST_VIOLATIONS {
            unknown.push(Violation::new(pointer_of_ignored(&path), UNKNOWN_FIELD));
        }
    });
    match read {
        Ok(value) if unknown.is_empty() => Ok(value),
        Ok(_) => Err(unknown),
        Err(error) => {
            unknown.push(Violation::unreadable(&track.path(), &error.to_string()));
            Err(unknown)
        }
    }
}

fn malformed(bytes: &[u8], error: &serde_json::Error) -> Problem {
    let detail = if bytes.is_empty() {
        "The body is empty; send a JSON object.".to_owned()
    } else {
        format!("{} (line {}, column {}).", without_place(&error.to_string()), error.line(), error.column())
    };
    Problem::new(Code::JsonMalformed, detail)
}

const UNKNOWN_FIELD: &str = "is not a field of this request; check its spelling or leave it out";

/// `serde_json` ends its messages with the place, which a pointer says better.
fn without_place(message: &str) -> String {
    message.rfind(" at line ").and_then(|end| message.get(..end)).unwrap_or(message).to_owned()
}

/// The parameters of a query (`?limit=20`), unknown ones refused.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    // Nothing that is stored holds one, and Postgres takes none to compare with either.
    if let Some((name, _)) = url::form_urlencoded::parse(query.as_bytes()).find(|(name, value)| name.contains('\0') || value.contains('\0'))
    {
        let detail = format!("{}: contains a NUL character (%00), which nothing here does; leave it out.", name.replace('\0', ""));
        return Err(Problem::new(Code::QueryInvalid, detail));
    }
    let mut track = Track::new();
    let mut unknown = Vec::new();
    let pairs = serde_urlencoded::Deserializer::new(url::form_urlencoded::parse(query.as_bytes()));
    let tracked = serde_path_to_error::Deserializer::new(pairs, &mut track);
    let read: Result<T, _> = serde_ignored::deserialize(tracked, |path| unknown.push(path.to_string()));
    match read {
        Ok(value) if unknown.is_empty() => Ok(value),
        Ok(_) => {
            unknown.truncate(MOST_VIOLATIONS);
            let detail =
                format!("The query has parameters that mean nothing here: {}; check their spelling or leave them out.", unknown.join(", "));
            Err(Problem::new(Code::QueryInvalid, detail))
        }
        Err(error) => {
            let path = track.path().to_string();
            let detail = if path == "." { format!("{error}.") } else { format!("{path}: {error}.") };
            Err(Problem::new(Code::QueryInvalid, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read by serde only")]
    struct Job {
        kind: String,
        #[serde(default)]
        priority: Option<Priority>,
        #[serde(default)]
        steps: Vec<Step>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Priority {
        High,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "read by serde only")]
    struct Step {
        sleep_ms: u32,
    }

    fn refused(body: &str) -> Value {
        let problem = parse::<Job>(body.as_bytes()).unwrap_err();
        let status = problem.code().status();
        let body = futures_util::FutureExt::now_or_never(problem.answer(None).into_body().collect()).unwrap().unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["status"], status.as_u16());
        answer
    }

    fn pointers(answer: &Value) -> Vec<(&str, &str)> {
        let errors = answer["errors"].as_array().unwrap();
        errors.iter().map(|error| (error["pointer"].as_str().unwrap(), error["detail"].as_str().unwrap())).collect()
    }

    #[test]
    fn good_input_is_read() {
        let job: Job = parse(br#" {"kind": "probe.run", "priority": "high", "steps": [{"sleep_ms": 1}]} "#).unwrap();
        assert_eq!((job.kind.as_str(), job.steps.len()), ("probe.run", 1));
    }

    #[test]
    fn wrong_fields_are_pointed_at() {
        let answer = refused(r#"{"priority": "high"}"#);
        assert_eq!(pointers(&answer), [("/kind", "is missing")]);
        assert_eq!(answer["detail"], "/kind: is missing");
        let answer = refused(r#"{"kind": "a", "steps": [{"sleep_ms": 1}, {"sleep_ms": "long"}]}"#);
        assert_eq!(pointers(&answer), [("/steps/1/sleep_ms", "invalid type: string \"long\", expected u32")]);
        let answer = refused(r#"{"kind": "a", "priority": "urgent"}"#);
        assert_eq!(pointers(&answer)[0].0, "/priority");
        let answer = refused(r#"{"kind": "a", "Priority": 1, "a/b": 2, "steps": [{"sleep_ms": 1, "x~": {"deep": 1}}]}"#);
        assert_eq!(pointers(&answer), [("/Priority", UNKNOWN_FIELD), ("/a~1b", UNKNOWN_FIELD), ("/steps/0/x~0", UNKNOWN_FIELD)]);
        assert_eq!(answer["code"], "validation_failed");
        assert_eq!(pointers(&refused(r#"{"kind": "a", "kind": "b"}"#))[0].1, "duplicate field `kind`");
    }

    #[test]
    fn what_is_no_json_says_where() {
        for (body, detail) in [
            ("", "The body is empty; send a JSON object."),
            ("{\"kind\": ", "EOF while parsing a value (line 1, column 9)."),
            ("{\"kind\": \"a\"} x", "trailing characters (line 1, column 15)."),
            ("{'kind': 1}", "key must be a string (line 1, column 2)."),
        ] {
            let answer = refused(body);
            assert_eq!((answer["code"].as_str(), answer["detail"].as_str()), (Some("json_malformed"), Some(detail)), "{body}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse::<Value>(deep.as_bytes()).unwrap_err().code(), Code::JsonMalformed);
        assert_eq!(parse::<Job>(b"{\"kind\": \"\xff\"}").unwrap_err().code(), Code::JsonMalformed);
    }

    #[test]
    fn json_types() {
        for json in
            ["application/json", "Application/JSON; charset=UTF-8", "application/json; charset=\"utf-8\"", "application/merge-patch+json"]
        {
            assert!(is_json(json), "{json}");
        }
        for other in ["text/json", "application/x-www-form-urlencoded", "application/json; charset=latin1", "", "application/jsonp"] {
            assert!(!is_json(other), "{other}");
        }
    }

    #[derive(Debug, Deserialize)]
    struct Page {
        limit: Option<u32>,
        kind: Option<String>,
    }

    #[test]
    fn queries() {
        let page: Page = parse_query("limit=20&kind=export%2Ecreate").unwrap();
        assert_eq!((page.limit, page.kind.as_deref()), (Some(20), Some("export.create")));
        let text = |query: &str| format!("{:?}", parse_query::<Page>(query).unwrap_err());
        assert!(text("limit=many").contains("limit: invalid digit found in string"), "{}", text("limit=many"));
        assert!(text("limt=1&x=2").contains("limt, x"), "{}", text("limt=1&x=2"));
        assert!(text("limit=1&limit=2").contains("duplicate field `limit`"));
    }
}
