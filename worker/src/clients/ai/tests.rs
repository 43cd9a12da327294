use bytes::Bytes;
use reqwest::{StatusCode, header::HeaderMap};
use sandbox::services::ai::{AiServer, Answer as Scripted, Trouble};
use serde_json::json;
use shared::{
    job::{Failure, FailureClass},
    outbound::Guard,
    tenant::Manifest,
};

use super::*;

fn now() -> DateTime<Utc> {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
    let headers: HeaderMap = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::from(body.to_owned()), is_cut: false }
}

#[test]
fn the_finest_word_on_when_to_come_back_holds_within_bounds() {
    for (headers, milliseconds) in [
        (vec![], None),
        (vec![("retry-after", "7")], Some(7_000)),
        (vec![("retry-after", "7"), ("retry-after-ms", "1500.5")], Some(1_500)),
        (vec![("x-ms-retry-after-ms", "2000")], Some(2_000)),
        (vec![("retry-after", "Fri, 20 Nov 2026 12:00:30 GMT")], Some(30_000)),
        // A date that has passed, and nothing at all, are no reason to come back at once and for ever.
        (vec![("retry-after", "Fri, 20 Nov 2026 11:00:00 GMT")], Some(500)),
        (vec![("retry-after-ms", "0")], Some(500)),
        (vec![("retry-after", "86400")], Some(3_600_000)),
        (vec![("retry-after-ms", "1e300")], None),
        (vec![("retry-after-ms", "-5")], None),
        (vec![("retry-after-ms", "NaN"), ("retry-after", "soon")], None),
    ] {
        let pause = pause::of(&answer(429, &headers, ""), now()).map(|pause| pause.as_millis());
        assert_eq!(pause, milliseconds, "{headers:?}");
    }
}

#[test]
fn a_refusal_is_what_it_says() {
    use FailureClass::{Limited, Permanent, Transient};

    let openai = |code: &str| json!({"error": {"message": "words", "type": "t", "code": code}}).to_string();
    let anthropic = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "words"}}).to_string();
    let after = [("retry-after", "7")];
    for (answer, code, class, another) in [
        (answer(429, &[], &openai("rate_limit_exceeded")), "ai_limited", Transient, true),
        (answer(429, &after, &openai("rate_limit_exceeded")), "ai_limited", Limited, true),
        (answer(429, &after, &openai("insufficient_quota")), "ai_quota_exhausted", Permanent, true),
        (answer(400, &[], &anthropic("billing_error")), "ai_quota_exhausted", Permanent, true),
        (answer(402, &[], ""), "ai_quota_exhausted", Permanent, true),
        (answer(401, &[], &openai("invalid_api_key")), "ai_key_refused", Permanent, true),
        (answer(403, &[], &anthropic("permission_error")), "ai_key_refused", Permanent, true),
        (answer(404, &[], &openai("model_not_found")), "ai_refused", Permanent, false),
        (answer(307, &[("location", "https://elsewhere.example")], ""), "ai_refused", Permanent, false),
        (answer(408, &[], ""), "ai_unavailable", Transient, true),
        (answer(500, &[], "<html>"), "ai_unavailable", Transient, true),
        (answer(503, &after, ""), "ai_limited", Limited, true),
        (answer(529, &[], &anthropic("overloaded_error")), "ai_limited", Transient, true),
    ] {
        let error = AiError::refused(&answer, None, now());
        assert_eq!((error.code(), error.another_may_help()), (code, another), "{error}");
        assert!(!error.may_have_arrived() && OUTCOMES.contains(&error.code()));
        assert_eq!(error.is_of_the_key(), code == "ai_key_refused");
        let waits = matches!(AiError::refused(&answer, None, now()), AiError::Limited { pause: Some(pause), .. } if pause == Duration::from_secs(7));
        assert_eq!(waits, class == Limited, "{error}");
        assert_eq!(Failure::from(error).class, class);
    }
}

#[test]
fn a_providers_words_are_bounded_and_hold_no_key() {
    let key = SecretString::from("sk-proj-abcdefghijklmnop");
    let said = "Incorrect API key provided: sk-proj-abcdefghijklmnop. Or was it sk-****mnop, mnop? Write to us.\u{7}";
    let body = json!({"error": {"message": said}}).to_string();
    let told = AiError::refused(&answer(401, &[], &body), Some(&key), now()).to_string();
    assert!(told.contains("Incorrect API key") && told.contains("Write to us."), "{told}");
    for part in ["sk-", "mnop", "\u{7}"] {
        assert!(!told.contains(part), "{told}");
    }
    // Wherever it stands, also where the words are cut, and in a stream.
    for said in [
        "key=sk-proj-abcdefghijklmnop;".to_owned(),
        "\"sk-proj-abcdefghijklmnop\"".to_owned(),
        "Bearer:proj-abcdefghij".to_owned(),
        format!("{}(sk-proj-abcdefghijklmnop)", "x ".repeat(142)),
        "Bad\u{a0}sk-proj-abcdefghijklmnop,\nsorry".to_owned(),
    ] {
        let error = json!({ "message": said });
        for told in [
            AiError::refused(&answer(401, &[], &json!({ "error": error }).to_string()), Some(&key), now()),
            AiError::refused(&answer(400, &[], &said), Some(&key), now()),
            AiError::in_stream(&error).told_without(Some(&key)),
        ] {
            let told = told.to_string();
            assert!(!told.contains("proj") && !told.contains("abcd"), "{told}");
        }
    }
    let odd = SecretString::from("a/b\"c+d");
    for said in ["at /v1?key=a%2Fb%22c%2Bd now", "it is {\\\"key\\\": \\\"a/b\\\"c+d\\\"}"] {
        let told = AiError::refused(&answer(400, &[], &json!({"error": {"message": said}}).to_string()), Some(&odd), now()).to_string();
        assert!(!told.contains("c%2Bd") && !told.contains("c+d"), "{told}");
    }
    let long = json!({"error": {"message": "x".repeat(10_000)}}).to_string();
    assert!(AiError::refused(&answer(400, &[], &long), None, now()).to_string().len() < 400);
}

#[test]
fn a_key_goes_into_one_header_and_is_nowhere_shown() {
    let key = SecretString::from("secret-key");
    for (kind, name, value) in
        [(ProviderKind::OpenAi, "authorization", "Bearer secret-key"), (ProviderKind::Anthropic, "x-api-key", "secret-key")]
    {
        let headers = headers(kind, Some(&key), false).unwrap();
        assert_eq!(headers[name], value);
        assert!(!format!("{headers:?}").contains("secret-key"));
    }
    // What a user brought may be anything: it is an error, not a panic.
    let odd = SecretString::from("a\nb");
    assert_eq!(headers(ProviderKind::OpenAi, Some(&odd), false).unwrap_err().code(), "ai_key_refused");
}

/// Behind a 200 it is an answer that says so, which goes another way than a refusal.
#[tokio::test]
async fn an_error_within_an_answer_is_passed_on_without_the_key() {
    let key = SecretString::from("sk-MARKED-0123456789");
    let server = AiServer::open(key.expose_secret().to_owned(), tokio::runtime::Handle::current()).await.unwrap();
    let provider = |kind: &str| format!("[ai.providers.{kind}]\nkind = \"{kind}\"\nbase_url = \"{}\"\n", server.url());
    let manifest = Manifest::from_toml(&format!("[tenant]\nname = \"shop\"\n{}{}", provider("openai"), provider("anthropic"))).unwrap();
    let models = Models::new(Arc::new(Outbound::new(Guard::read("loopback").unwrap())));
    let turns = vec![Turn { role: Role::User, text: "What is the sea?".to_owned() }];
    let question = Question { model: "m".to_owned(), system: None, turns, schema: None, max_tokens: 10, temperature: None };
    for provider in manifest.ai.providers.values() {
        for streamed in [false, true] {
            server.script(Scripted { trouble: Some(Trouble::ErrorInStream { after_words: 1 }), ..Scripted::default() });
            let mut nobody = ();
            let listener = streamed.then_some(&mut nobody as &mut dyn Listener);
            let asked = models.ask(provider, Some(&key), &question, Duration::from_secs(20), listener, now());
            let error = asked.await.unwrap_err();
            // A plain one of Anthropic's is of no form that it has: nothing of it is passed on.
            let is_read = streamed || provider.kind == ProviderKind::OpenAi;
            assert_eq!(error.code(), if is_read { "ai_cut" } else { "ai_unreadable" }, "{:?}, {streamed}: {error:?}", provider.kind);
            let told = format!("{error} {error:?}") + &format!("{:?}", Failure::from(error));
            assert!(told.contains("overloaded") == is_read && !told.contains("MARKED"), "{told}");
        }
    }
}

#[test]
fn a_count_of_tokens_that_no_model_has_says_nothing() {
    for (count, said) in [
        ("1000000000", Some(1_000_000_000)),
        ("1000000001", None),
        ("1000000000000000000", None),
        ("1e18", None),
        ("99999999999999999999999", None),
        ("-1", None),
        ("1.5", None),
        ("null", None),
        ("\"7\"", None),
    ] {
        let usage = said.map_or_else(Usage::default, |input_tokens| Usage { input_tokens, output_tokens: 2, estimated: false });
        let body = format!(
            r#"{{"choices": [{{"message": {{"content": "x"}}, "finish_reason": "stop"}}],
                 "usage": {{"prompt_tokens": {count}, "completion_tokens": 2}}}}"#
        );
        assert_eq!(openai::reply(body.as_bytes()).unwrap().usage, usage, "{count}");
        let body = format!(
            r#"{{"content": [{{"text": "x"}}], "stop_reason": "end_turn", "usage": {{"input_tokens": {count}, "output_tokens": 2}}}}"#
        );
        assert_eq!(anthropic::reply(body.as_bytes()).unwrap().usage, usage, "{count}");
    }
}

#[test]
fn what_servers_of_the_dialect_leave_out_is_no_fault() {
    let reply = openai::reply(br#"{"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}"#).unwrap();
    assert_eq!((reply.text.as_str(), &reply.finish, reply.usage), ("hello", &Finish::Complete, Usage::default()));
    let reply = openai::reply(br#"{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}]}"#).unwrap();
    assert_eq!((reply.text.as_str(), reply.finish), ("no", Finish::Refusal));
    let reply = openai::reply(br#"{"choices": [{"message": {"content": "x"}, "finish_reason": "a_word_of_its_own"}]}"#).unwrap();
    assert_eq!(reply.finish, Finish::Unknown);
    for unreadable in ["", "{}", "[]", "{\"choices\": []}", "{\"choices\": [{\"message\": {\"content\": 7}}]}", "<html>"] {
        assert_eq!(openai::reply(unreadable.as_bytes()).unwrap_err().code(), "ai_unreadable", "{unreadable}");
        assert_eq!(anthropic::reply(unreadable.as_bytes()).unwrap_err().code(), "ai_unreadable", "{unreadable}");
    }
    let reply = anthropic::reply(
        br#"{"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hello"}], "stop_reason": "end_turn",
             "usage": {"input_tokens": 1, "cache_read_input_tokens": 5, "output_tokens": 2}}"#,
    )
    .unwrap();
    assert_eq!((reply.text.as_str(), reply.usage.input_tokens, reply.usage.output_tokens), ("hello", 6, 2));
}
