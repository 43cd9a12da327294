//! The vendors' logs of calls show their rules obeyed.

use acceptance::{Client, World};
use chrono::{DateTime, TimeDelta, Utc};
use sandbox::{
    Fault, Rule,
    services::vendors::{GITHUB_TOKEN, REDDIT_CLIENT, Scripted, VendorCall, Window},
};
use serde_json::{Value, json};

use super::{community, put_off, refresh, refreshed, repository, statistic};

pub(super) fn scripted(path: &str, status: u16, headers: &[(&str, &str)], body: &Value) -> Scripted {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Scripted { path_contains: path.to_owned(), status, headers, body: body.to_string(), times: 1 }
}

pub(super) fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}

/// Statistics of one vendor: 25 of them.
fn many(world: &World, vendor: &str) -> String {
    let vendors = &world.sandbox.vendors;
    let one = |number: usize| {
        let (about, subject, path, body, more) = match vendor {
            "github" => ("github_repository", format!("acme/r{number}"), format!("repos/acme/r{number}"), repository(500), ""),
            "reddit" => (
                "reddit_community",
                format!("makers{number}"),
                format!("r/makers{number}"),
                json!({"kind": "t5", "data": {"subscribers": 8_000}}),
                "credential_env = \"OFFSTAGE_STATS_REDDIT\"\nreddit_user = \"ada\"\n",
            ),
            "discord" => {
                let body = json!({"approximate_member_count": 9, "approximate_presence_count": 1});
                ("discord_invite", format!("i{number}"), format!("invites/i{number}"), body, "")
            }
            _ => {
                let body = json!({"likes": 1, "downloads": 2});
                ("hugging_face_model", format!("acme/m{number}"), format!("api/models/acme/m{number}"), body, "")
            }
        };
        vendors.put(&format!("/{vendor}/{path}"), &body);
        format!("[stats.{vendor}_{number}]\nabout = \"{about}\"\nsubject = \"{subject}\"\nevery_seconds = 604800\n{more}")
    };
    (0..25).map(one).collect()
}

#[tokio::test]
async fn a_tenth_of_each_window_is_left_alone_by_the_whole_fleet() {
    let (world, clock) = World::start_now().await;
    let windows = [("github", 3_600), ("reddit", 600), ("discord", 120), ("hugging_face", 300)];
    let sources: String = windows.iter().map(|(vendor, _)| many(&world, vendor)).collect();
    let client = world.tenant_of("community", &format!("[tenant]\nname = \"community\"\n{sources}")).await;
    for _ in 0..2 {
        world.start_worker(clock.launch()).await;
    }
    let vendors = &world.sandbox.vendors;
    for (vendor, seconds) in windows {
        vendors.grant(vendor, Window { most: 20, remaining: 20, resets_in: seconds });
        let seconds = seconds.cast_signed();
        let began = clock.now();
        let mut jobs = Vec::new();
        for number in 0..25 {
            jobs.push(refresh(&client, &format!("{vendor}_{number}")).await);
        }
        let asked = || vendors.calls(vendor).into_iter().filter(|call| call.method == "GET").collect::<Vec<VendorCall>>();
        let waiting = acceptance::until("each is done, or put off until the window's end", async || {
            let mut waiting = 0;
            for job in &jobs {
                let job = client.job(job).await;
                let is_put_off = job["state"] == "waiting" && time(&job["run_at"]) > began + TimeDelta::seconds(seconds - 1);
                if job["state"] != "succeeded" && !is_put_off {
                    // Who waited long for their turn comes again after some seconds.
                    if job["state"] == "waiting" && clock.now() < began + TimeDelta::seconds(60) {
                        clock.advance(TimeDelta::milliseconds(500));
                    }
                    return Err(job);
                }
                waiting += usize::from(is_put_off);
            }
            Ok(waiting)
        })
        .await;
        let calls = asked();
        assert_eq!((calls.len(), waiting), (18, 7), "{vendor}: {calls:?}");
        assert!(calls.iter().all(|call| call.remaining.unwrap() * 10 >= call.most.unwrap()), "{vendor}: {calls:?}");
        assert!(calls.iter().all(|call| call.under_way == 1), "{vendor}: one at a time, {calls:?}");
        assert!(calls.iter().all(|call| call.status == 200), "{vendor} never had to say no: {calls:?}");
        let mut told = 0;
        for number in 0..25 {
            told += usize::from(statistic(&client, &format!("{vendor}_{number}")).await["not_before"].is_string());
        }
        assert_eq!(told, 7, "{vendor}: it is said when");
        // In the next window the others go on.
        vendors.grant(vendor, Window { most: 20, remaining: 20, resets_in: seconds.cast_unsigned() });
        clock.advance(TimeDelta::seconds(seconds + 60));
        for job in &jobs {
            client.succeeded(job).await;
        }
        assert_eq!(asked().len(), 25, "{vendor}");
    }
}

/// Limited once, a vendor is left alone for as long as it says, by all that would ask it.
async fn left_alone(world: &World, client: &Client, clock: &acceptance::SetClock, answer: Scripted, seconds: i64) {
    let vendors = &world.sandbox.vendors;
    vendors.forget_calls();
    let what = format!("{answer:?}");
    vendors.script(answer);
    let began = clock.now();
    let job = refresh(client, "tools").await;
    let waiting = put_off(client, &job).await;
    let not_before = time(&statistic(client, "tools").await["not_before"]);
    assert_eq!((not_before - began).num_seconds(), seconds, "{what}");
    assert!(time(&waiting["run_at"]) >= not_before, "{what}");
    // Just before, another that shares the credential is put off too.
    clock.set(not_before - TimeDelta::seconds(1));
    let other = refresh(client, "team").await;
    put_off(client, &other).await;
    assert_eq!(vendors.calls("github").len(), 1, "{what}");
    clock.advance(TimeDelta::seconds(40 + seconds / 10));
    client.succeeded(&job).await;
    client.succeeded(&other).await;
    assert_eq!(vendors.calls("github").len(), 3, "{what}");
}

#[tokio::test]
async fn githubs_limits_are_obeyed_in_its_order() {
    let (world, clock) = World::start_now().await;
    let vendors = &world.sandbox.vendors;
    vendors.put("/github/repos/acme/tools", &repository(1_000));
    vendors.put("/github/orgs/acme", &json!({"followers": 10, "public_repos": 2}));
    let manifest = "[tenant]\nname = \"community\"\n\
        [stats.tools]\nabout = \"github_repository\"\nsubject = \"acme/tools\"\ncredential_env = \"OFFSTAGE_STATS_GITHUB\"\n\
        [stats.team]\nabout = \"github_organisation\"\nsubject = \"acme\"\ncredential_env = \"OFFSTAGE_STATS_GITHUB\"\n";
    let client = world.tenant_of("community", manifest).await;
    world.start_worker(clock.launch()).await;
    let secondary = json!({"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."});
    let primary = json!({"message": "API rate limit exceeded"});
    // What it asks for, whatever else it says.
    let first = scripted(
        "/tools",
        403,
        &[("retry-after", "77"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-limit", "5000"), ("x-ratelimit-reset", "4102444800")],
        &secondary,
    );
    left_alone(&world, &client, &clock, first, 77).await;
    let busy = scripted("/tools", 429, &[("retry-after", "200")], &primary);
    left_alone(&world, &client, &clock, busy, 200).await;
    // A secondary limit that says nothing: a minute; twice in a row two.
    left_alone(
        &world,
        &client,
        &clock,
        scripted("/tools", 403, &[("x-ratelimit-remaining", "4000"), ("x-ratelimit-limit", "5000")], &secondary),
        60,
    )
    .await;
    left_alone(&world, &client, &clock, scripted("/tools", 403, &[], &secondary), 60).await;
    vendors.forget_calls();
    for _ in 0..2 {
        vendors.script(scripted("/tools", 403, &[], &secondary));
    }
    let job = refresh(&client, "tools").await;
    put_off(&client, &job).await;
    clock.set(time(&statistic(&client, "tools").await["not_before"]) + TimeDelta::seconds(7));
    let again = clock.now();
    acceptance::until("it is refused once more", async || {
        let calls = vendors.calls("github");
        let found = statistic(&client, "tools").await;
        let is_longer = found["not_before"].is_string() && (time(&found["not_before"]) - again).num_seconds() == 120;
        if calls.len() == 2 && is_longer { Ok(()) } else { Err((calls, found)) }
    })
    .await;
    clock.advance(TimeDelta::seconds(140));
    client.succeeded(&job).await;
    // Any other 403 is a refusal, which no waiting helps.
    vendors.script(scripted(
        "/tools",
        403,
        &[("x-ratelimit-remaining", "4000")],
        &json!({"message": "Resource not accessible by personal access token"}),
    ));
    let refused = client.ended(&refresh(&client, "tools").await).await;
    assert_eq!((&refused["state"], &refused["error"]["code"]), (&json!("failed"), &json!("vendor_refused")), "{refused}");
    let found = statistic(&client, "tools").await;
    assert_eq!((&found["figures"]["members"], &found["failing"]["code"]), (&json!(1_000), &json!("vendor_refused")));
}

#[tokio::test]
async fn only_what_changed_is_sent_and_a_tag_is_of_one_question() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    for (vendor, source) in [("github", "tools"), ("reddit", "makers"), ("discord", "chat"), ("hugging_face", "model"), ("json", "any")] {
        assert_eq!(refreshed(&client, source).await["outcome"], "measured", "{vendor}");
        assert_eq!(refreshed(&client, source).await["outcome"], "unchanged", "{vendor}");
        let calls: Vec<_> = vendors.calls(vendor).into_iter().filter(|call| call.method == "GET").collect();
        let [first, second] = calls.as_slice() else { panic!("{calls:?}") };
        assert_eq!((first.status, &first.if_none_match, second.status), (200, &None, 304), "{vendor}");
        assert!(second.if_none_match.is_some(), "{vendor}");
    }
    // Answers of 304 are free at GitHub with a credential.
    let github = vendors.calls("github");
    assert_eq!(github.iter().map(|call| call.remaining.unwrap()).collect::<Vec<_>>(), [4_999, 4_999]);
    assert!(github.iter().all(|call| call.accept.as_deref() == Some("application/vnd.github+json") && call.user_agent.is_some()));
    // Without the credential it is another question.
    vendors.forget_calls();
    let manifest =
        super::MANIFEST.replace("subject = \"acme/tools\"\ncredential_env = \"OFFSTAGE_STATS_GITHUB\"", "subject = \"acme/tools\"");
    assert_ne!(manifest, super::MANIFEST);
    world.tenant_of("community", &manifest).await;
    acceptance::until("the worker asks without", async || {
        // Of wishes there are so many an hour.
        clock.advance(TimeDelta::minutes(6));
        refreshed(&client, "tools").await;
        let calls: Vec<_> = vendors.calls("github").into_iter().filter(|call| call.path == "/repos/acme/tools").collect();
        match calls.iter().find(|call| call.authorization.is_none()) {
            Some(call) if call.if_none_match.is_none() => Ok(()),
            Some(call) => panic!("a tag of another question was sent: {call:?}"),
            None => Err(calls),
        }
    })
    .await;
}

#[tokio::test]
async fn reddit_and_discord_are_asked_as_they_want_it() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    let worker = world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    for _ in 0..3 {
        refreshed(&client, "makers").await;
    }
    let calls = vendors.calls("reddit");
    let agent = calls[0].user_agent.clone().unwrap();
    assert!(agent.starts_with("server:offstage.community:") && agent.ends_with(" (by /u/ada)"), "{agent}");
    assert!(calls.iter().all(|call| call.user_agent.as_ref() == Some(&agent)));
    let paths: Vec<_> = calls
        .iter()
        .map(|call| (call.method.as_str(), call.path.split('?').next().unwrap(), call.authorization.as_deref().unwrap()))
        .collect();
    let about = ("GET", "/r/makers/about", "Bearer");
    assert_eq!(paths, [("POST", "/api/v1/access_token", "Basic"), about, about, about], "one token for all");
    // A token that is not taken any more is made anew, once.
    vendors.expire_tokens();
    refreshed(&client, "makers").await;
    let statuses: Vec<_> = vendors.calls("reddit").iter().skip(4).map(|call| (call.method.clone(), call.status)).collect();
    assert_eq!(statuses, [("GET".to_owned(), 401), ("POST".to_owned(), 200), ("GET".to_owned(), 200)]);
    // A community that is not there leads to a search.
    vendors.redirect("/reddit/r/makers", "/reddit/subreddits/search?q=makers", 302);
    assert_eq!(refreshed(&client, "makers").await["outcome"], "gone");

    refreshed(&client, "chat").await;
    assert!(vendors.calls("discord")[0].user_agent.as_ref().unwrap().starts_with("DiscordBot (https://"));
    let bucket = world.text("SELECT bucket FROM vendor_budget WHERE key LIKE 'discord%route%'").await;
    assert_eq!(bucket, "b0a1d2");
    // A global limit stops what any bucket still grants.
    let body = json!({"message": "You are being rate limited.", "retry_after": 31.2, "global": true});
    vendors.script(scripted("/invites/", 429, &[("x-ratelimit-global", "true"), ("retry-after", "32")], &body));
    let (began, job) = (clock.now(), refresh(&client, "chat").await);
    put_off(&client, &job).await;
    assert_eq!((time(&statistic(&client, "chat").await["not_before"]) - began).num_seconds(), 32);
    assert_eq!(world.number("SELECT invalid FROM vendor_budget WHERE key = 'discord address'").await, 1);
    // Near a ban nobody asks at all.
    world.execute("UPDATE vendor_budget SET invalid = 1000 WHERE key = 'discord address'").await;
    clock.advance(TimeDelta::seconds(60));
    let asked = vendors.calls("discord").len();
    let banned = refresh(&client, "chat").await;
    put_off(&client, &banned).await;
    assert_eq!(vendors.calls("discord").len(), asked);
    clock.advance(TimeDelta::minutes(11));
    client.succeeded(&banned).await;

    // Of all the secrets nothing is written down.
    let log = std::fs::read_to_string(worker.log_path()).unwrap();
    let written = world.text("SELECT coalesce(string_agg(v::text, ' '), '') FROM vendor_budget v").await
        + &world.text("SELECT coalesce(string_agg(s::text, ' '), '') FROM statistic s").await
        + &log;
    for secret in [GITHUB_TOKEN, REDDIT_CLIENT, "sandbox-reddit-secret", "reddit-token-"] {
        assert!(!written.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn reddits_door_for_tokens_is_left_alone_for_as_long_as_it_says() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    for (status, seconds) in [(429, 900), (503, 1_200)] {
        vendors.forget_calls();
        vendors.script(scripted("/access_token", status, &[("retry-after", &seconds.to_string())], &json!({})));
        let began = clock.now();
        let job = refresh(&client, "makers").await;
        let waiting = put_off(&client, &job).await;
        let not_before = time(&statistic(&client, "makers").await["not_before"]);
        assert_eq!((not_before - began).num_seconds(), seconds, "{status}");
        assert!(time(&waiting["run_at"]) >= not_before, "{status}");
        let doors = || vendors.calls("reddit").into_iter().filter(|call| call.method == "POST").map(|call| call.status).collect::<Vec<_>>();
        clock.set(not_before - TimeDelta::seconds(1));
        assert_eq!(doors(), [status]);
        clock.advance(TimeDelta::seconds(40 + seconds / 10));
        client.succeeded(&job).await;
        assert_eq!(doors(), [status, 200]);
        vendors.expire_tokens();
    }
}

#[tokio::test]
async fn what_moved_is_followed_and_what_is_gone_is_no_zero() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    let paths = || vendors.calls("github").into_iter().map(|call| (call.path, call.status)).collect::<Vec<_>>();
    refreshed(&client, "tools").await;
    vendors.forget_calls();
    vendors.put("/github/repositories/7", &repository(1_010));
    vendors.redirect("/github/repos/acme/tools", "/github/repositories/7", 301);
    assert_eq!(refreshed(&client, "tools").await["figures"]["members"], 1_010);
    assert_eq!(refreshed(&client, "tools").await["outcome"], "unchanged");
    let (old, new) = ("/repos/acme/tools".to_owned(), "/repositories/7".to_owned());
    assert_eq!(paths(), [(old.clone(), 301), (new.clone(), 200), (new.clone(), 304)], "remembered");
    // One that is for now is followed and not remembered.
    vendors.forget_calls();
    vendors.redirect("/github/repositories/7", "/github/repositories/8", 307);
    vendors.put("/github/repositories/8", &repository(1_011));
    refreshed(&client, "tools").await;
    refreshed(&client, "tools").await;
    let other = "/repositories/8".to_owned();
    assert_eq!(paths(), [(new.clone(), 307), (other.clone(), 200), (new.clone(), 307), (other, 304)]);
    // Gone there, and gone where it was first: it is gone, and its figures are no zeros.
    vendors.forget_calls();
    vendors.remove("/github/repositories/7");
    assert_eq!(refreshed(&client, "tools").await["outcome"], "gone");
    let found = statistic(&client, "tools").await;
    assert_eq!((&found["state"], &found["figures"]["members"], &found["stale"]), (&json!("gone"), &json!(1_011), &json!(true)));
    assert_eq!(time(&found["gone_at"]), clock.now());
    // Readers ask for it no more.
    clock.advance(TimeDelta::hours(2));
    vendors.forget_calls();
    vendors.put("/github/repos/acme/tools", &repository(1_012));
    assert_eq!(refreshed(&client, "tools").await["outcome"], "measured");
    assert_eq!(paths(), [(old.clone(), 200)]);
    assert_eq!(statistic(&client, "tools").await["state"], "measured");
    // Nobody is led away with our credential.
    for elsewhere in ["http://127.0.0.1:9/repos/acme/tools", "https://evil.example/", "/json/any"] {
        vendors.redirect("/github/repos/acme/tools", elsewhere, 301);
        let job = refresh(&client, "tools").await;
        let failing = acceptance::until("it is refused", async || {
            let found = statistic(&client, "tools").await;
            if found["failing"]["code"] == "vendor_malformed" {
                Ok(found["failing"]["detail"].as_str().unwrap().to_owned())
            } else {
                Err(found)
            }
        })
        .await;
        assert!(failing.contains("not the vendor's"), "{failing}");
        client.post_nothing(&format!("/v1/jobs/{job}/cancel")).await;
        client.ended(&job).await;
        vendors.put("/github/repos/acme/tools", &repository(1_012));
        clock.advance(TimeDelta::minutes(1));
        refreshed(&client, "tools").await;
    }
}

#[tokio::test]
async fn where_something_moved_to_is_nothing_of_another_question() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    vendors.put("/github/repositories/7", &repository(1_010));
    vendors.redirect("/github/repos/acme/tools", "/github/repositories/7", 301);
    assert_eq!(refreshed(&client, "tools").await["figures"]["members"], 1_010);
    // The manifest names another repository by the same name: its own address is asked, not where the one before it went.
    vendors.put("/github/repos/acme/other", &repository(1_020));
    let manifest = super::MANIFEST.replace("subject = \"acme/tools\"", "subject = \"acme/other\"");
    world.tenant_of("community", &manifest).await;
    acceptance::until("the worker knows of it", async || {
        // Of wishes there are so many an hour.
        clock.advance(TimeDelta::minutes(6));
        vendors.forget_calls();
        refreshed(&client, "tools").await;
        let calls = vendors.calls("github");
        if calls.iter().any(|call| call.path == "/repos/acme/other") { Ok(()) } else { Err(calls) }
    })
    .await;
    assert_eq!(statistic(&client, "tools").await["figures"]["members"], 1_020);
}

#[tokio::test]
async fn what_is_malformed_or_down_takes_no_figure_away() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    refreshed(&client, "tools").await;
    let wrong = [
        (scripted("/tools", 200, &[], &json!("<html>")), "vendor_malformed"),
        (scripted("/tools", 200, &[], &json!({"stargazers_count": "many"})), "vendor_malformed"),
        (
            scripted(
                "/tools",
                200,
                &[],
                &json!({"stargazers_count": -1, "forks_count": 0, "subscribers_count": 0, "open_issues_count": 0}),
            ),
            "vendor_malformed",
        ),
        (Scripted { body: "{\"stargazers_count\": 10".to_owned(), ..scripted("/tools", 200, &[], &json!(null)) }, "vendor_malformed"),
        (scripted("/tools", 502, &[], &json!({})), "vendor_down"),
    ];
    for (answer, code) in wrong {
        let what = format!("{answer:?}");
        vendors.script(answer);
        let job = refresh(&client, "tools").await;
        put_off(&client, &job).await;
        let found = statistic(&client, "tools").await;
        assert_eq!(
            (&found["failing"]["code"], &found["figures"]["members"], &found["state"]),
            (&json!(code), &json!(1_000), &json!("measured")),
            "{what}"
        );
        // Tried again after a pause, it is as it was.
        clock.advance(TimeDelta::minutes(1));
        client.succeeded(&job).await;
        assert_eq!(statistic(&client, "tools").await["failing"], Value::Null, "{what}");
    }
    // A worker that dies with a call under way leaves it to another.
    vendors.faults().add(Rule::from(Fault::Hang).on("github").times(1));
    let job = refresh(&client, "tools").await;
    acceptance::until("the call is under way", async || {
        let calls = vendors.calls("github");
        if calls.last().is_some_and(|call| call.status == 0) { Ok(()) } else { Err(calls) }
    })
    .await;
    let worker = world.sandbox.processes().into_iter().find(|process| process.name() == "worker-1").unwrap();
    worker.kill9().await.unwrap();
    vendors.faults().clear();
    acceptance::until_within(std::time::Duration::from_secs(180), "another worker did it", async || {
        // Whoever takes it over waits until the dead one's call has had its time.
        clock.advance(TimeDelta::seconds(3));
        let job = client.job(&job).await;
        if job["state"] == "succeeded" { Ok(()) } else { Err(job) }
    })
    .await;
}
