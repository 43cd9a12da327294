use bytes::Bytes;
use chrono::TimeDelta;
use serde_json::json;

use super::*;

fn vendors(credentials: &[(&str, &str)]) -> Vendors {
    let credentials = credentials.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect();
    Vendors::new(&config::Vendors { credentials, played_at: None }, Arc::default())
}

fn source(text: &str) -> StatisticSource {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn question(text: &str) -> Question {
    let all = [
        ("OFFSTAGE_STATS_GITHUB", "github-secret"),
        ("OFFSTAGE_STATS_REDDIT", "id:reddit-secret"),
        ("OFFSTAGE_STATS_DISCORD", "discord-secret"),
        ("OFFSTAGE_STATS_JSON", "json-secret"),
    ];
    vendors(&all).question("acme", &source(text)).unwrap()
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
    let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: Bytes::from(body.to_owned()), is_cut: false }
}

const GITHUB: &str = r#"{"about": "github_repository", "subject": "acme/tools", "credential_env": "OFFSTAGE_STATS_GITHUB"}"#;
const DISCORD: &str = r#"{"about": "discord_invite", "subject": "acme"}"#;

fn reply(question: &Question, answer: &Answer) -> Reply {
    question.reply(&question.url, answer, DateTime::UNIX_EPOCH + TimeDelta::days(20_000))
}

#[test]
fn each_vendor_is_asked_at_its_own_address_as_it_wants_it() {
    let github = question(GITHUB);
    assert_eq!(github.url.as_str(), "https://api.github.com/repos/acme/tools");
    assert_eq!(github.headers[ACCEPT], "application/vnd.github+json");
    assert_eq!(github.headers[AUTHORIZATION], "Bearer github-secret");
    assert!(!format!("{github:?}").contains("github-secret"), "{github:?}");
    let reddit = r#"{"about": "reddit_community", "subject": "rust", "credential_env": "OFFSTAGE_STATS_REDDIT", "reddit_user": "ada"}"#;
    let reddit = question(reddit);
    assert_eq!(reddit.url.as_str(), "https://oauth.reddit.com/r/rust/about?raw_json=1");
    assert_eq!(reddit.headers[USER_AGENT], format!("server:offstage.acme:{} (by /u/ada)", env!("CARGO_PKG_VERSION")));
    assert!(!reddit.headers.contains_key(AUTHORIZATION) && !format!("{reddit:?}").contains("reddit-secret"));
    let discord = question(DISCORD);
    assert_eq!(discord.url.as_str(), "https://discord.com/api/v10/invites/acme?with_counts=true");
    assert!(discord.headers[USER_AGENT].to_str().unwrap().starts_with("DiscordBot (https://"));
    let model = question(r#"{"about": "hugging_face_model", "subject": "acme/small"}"#);
    assert!(model.url.as_str().starts_with("https://huggingface.co/api/models/acme/small?expand"));
    let missing = vendors(&[]).question("acme", &source(GITHUB)).unwrap_err();
    assert!(missing.to_string().contains("OFFSTAGE_STATS_GITHUB"));
    // Whoever asks with another credential asks for something else.
    assert_ne!(github.asked, question(r#"{"about": "github_repository", "subject": "acme/tools"}"#).asked);
}

#[test]
fn limits_are_read_in_their_order() {
    let github = question(GITHUB);
    let reset = DateTime::parse_from_rfc2822("Fri, 04 Oct 2024 00:10:00 GMT").unwrap().timestamp().to_string();
    let window = [("date", "Fri, 04 Oct 2024 00:00:00 GMT"), ("x-ratelimit-limit", "5000"), ("x-ratelimit-reset", reset.as_str())];
    let with = |more: &[(&'static str, &'static str)]| [window.to_vec(), more.to_vec()].concat();
    let told = |status, headers: &[(&'static str, &str)], body: &str| {
        let reply = reply(&github, &answer(status, headers, body));
        (reply.said, reply.told[0].clone())
    };
    // What it asks for goes first, also with calls left.
    let (said, first) = told(403, &with(&[("retry-after", "7"), ("x-ratelimit-remaining", "0")]), "");
    assert_eq!((said, first.blocked_for, first.is_unexplained), (Said::Limited, Some(Duration::from_secs(7)), false));
    // Then the window's end, by their clock and not by ours.
    let (said, second) = told(403, &with(&[("x-ratelimit-remaining", "0")]), "");
    assert_eq!((said, second.blocked_for, second.remaining), (Said::Limited, Some(Duration::from_secs(600)), Some(0)));
    // A secondary limit says it in words alone.
    let words = r#"{"message": "You have exceeded a secondary rate limit."}"#;
    let (said, third) = told(403, &with(&[("x-ratelimit-remaining", "4000")]), words);
    assert_eq!((said, third.blocked_for, third.is_unexplained), (Said::Limited, None, true));
    // Any other 403 is none.
    let (said, fourth) = told(403, &with(&[("x-ratelimit-remaining", "4000")]), r#"{"message": "Resource not accessible"}"#);
    assert!(matches!(said, Said::Refused { status: 403, .. }) && !fourth.is_unexplained && fourth.blocked_for.is_none());
    let polled = reply(&github, &answer(304, &[("x-poll-interval", "90")], ""));
    assert_eq!((polled.said, polled.poll_after), (Said::Unchanged, Some(Duration::from_secs(90))));
}

#[test]
fn discords_buckets_bans_and_global_limits_are_told_apart() {
    let discord = question(DISCORD);
    let bucket =
        [("x-ratelimit-bucket", "abcd"), ("x-ratelimit-limit", "5"), ("x-ratelimit-remaining", "3"), ("x-ratelimit-reset-after", "1.5")];
    let body = r#"{"approximate_member_count": 10, "approximate_presence_count": 2}"#;
    let good = reply(&discord, &answer(200, &bucket, body)).told;
    let of = |told: &[Told], part: &str| told.iter().find(|told| told.key.contains(part)).cloned().unwrap_or_else(|| panic!("{told:?}"));
    assert_eq!(of(&good, "route").bucket.as_deref(), Some("abcd"));
    let own = of(&good, "bucket abcd");
    assert_eq!((own.most, own.remaining, own.resets_in), (Some(5), Some(3), Some(Duration::from_secs(2))));
    assert!(!of(&good, "address").is_invalid);
    assert_eq!(discord.budgets(None)[2].key, discord.route().unwrap());
    assert_eq!(discord.budgets(Some("abcd"))[2].key, own.key);

    let limited = |scope: &'static str, body: &str| reply(&discord, &answer(429, &[bucket[0], ("x-ratelimit-scope", scope)], body)).told;
    let user = limited("user", r#"{"retry_after": 2.4, "global": false}"#);
    assert_eq!(of(&user, "bucket abcd").blocked_for, Some(Duration::from_secs(3)));
    assert!(of(&user, "address").is_invalid && user[1].blocked_for.is_none());
    assert!(!of(&limited("shared", r#"{"retry_after": 2.4}"#), "address").is_invalid, "a shared limit is nobody's fault");
    assert_eq!(limited("global", r#"{"retry_after": 60}"#)[1].blocked_for, Some(Duration::from_secs(60)));
    assert!(of(&reply(&discord, &answer(401, &[], "")).told, "address").is_invalid);
}

#[test]
fn reddits_floats_and_hugging_faces_parts_are_read() {
    let now = DateTime::UNIX_EPOCH;
    let reddit = [("x-ratelimit-used", "3.5"), ("x-ratelimit-remaining", "96.5"), ("x-ratelimit-reset", "41")];
    let limits = Limits::of(Vendor::Reddit, &answer(200, &reddit, ""), now);
    assert_eq!((limits.remaining, limits.most, limits.resets_in), (Some(96), Some(100), Some(Duration::from_secs(41))));
    let face = [("ratelimit", "\"api\";r=499;t=243"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")];
    let limits = Limits::of(Vendor::HuggingFace, &answer(200, &face, ""), now);
    assert_eq!((limits.remaining, limits.most, limits.resets_in), (Some(499), Some(500), Some(Duration::from_secs(243))));
    let wild = [("x-ratelimit-remaining", "NaN"), ("x-ratelimit-reset", "1e300"), ("retry-after", "-5"), ("x-ratelimit-limit", "-3")];
    let limits = Limits::of(Vendor::Github, &answer(200, &wild, ""), now);
    assert_eq!((limits.remaining, limits.most, limits.resets_in), (None, Some(0), Some(Duration::from_secs(86_400))));
}

#[test]
fn redirects_stay_with_the_vendor() {
    let github = question(GITHUB);
    let moved = |status, to: &str| reply(&github, &answer(status, &[("location", to)], "")).said;
    let there = Said::Moved { to: "https://api.github.com/repositories/7".parse().unwrap(), is_permanent: true };
    assert_eq!(moved(301, "https://api.github.com/repositories/7"), there);
    assert_eq!(moved(308, "/repositories/7"), there);
    assert!(matches!(moved(302, "/repositories/7"), Said::Moved { is_permanent: false, .. }));
    for elsewhere in ["https://evil.example/", "https://api.github.com.evil.example/", "http://api.github.com/", "//evil.example/x"] {
        assert!(matches!(moved(301, elsewhere), Said::Malformed(_)), "{elsewhere}");
    }
    assert!(matches!(reply(&github, &answer(301, &[], "")).said, Said::Malformed(_)));
}

#[test]
fn what_is_no_number_is_malformed_and_never_zero() {
    let github = question(GITHUB);
    let good = json!({"stargazers_count": 5, "forks_count": 1, "subscribers_count": 2, "open_issues_count": 0, "pushed_at": "2024-10-04T00:00:00Z"});
    let said = |document: &Value| reply(&github, &answer(200, &[("etag", "W/\"a\"")], &document.to_string())).said;
    let Said::Figures { figures, worked_at, etag, .. } = said(&good) else { panic!() };
    assert_eq!((figures["members"], figures["open_issues"], etag.as_deref()), (5.0, 0.0, Some("W/\"a\"")));
    assert!(worked_at.is_some());
    for wrong in [json!(null), json!("5"), json!(-1), json!([]), json!(true)] {
        let mut document = good.clone();
        document["stargazers_count"] = wrong;
        assert!(matches!(said(&document), Said::Malformed(_)), "{document}");
    }
    for body in ["", "<html>", "[]", "{}"] {
        assert!(matches!(reply(&github, &answer(200, &[], body)).said, Said::Malformed(_)), "{body}");
    }
    let cut = Answer { is_cut: true, ..answer(200, &[], &good.to_string()) };
    assert!(matches!(reply(&github, &cut).said, Said::Malformed(_)));
    for status in [404, 410, 451] {
        assert_eq!(reply(&github, &answer(status, &[], "")).said, Said::Gone);
    }
    assert_eq!(reply(&github, &answer(502, &[], "")).said, Said::Down(502));
}
