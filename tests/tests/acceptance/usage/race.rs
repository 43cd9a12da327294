//! Many requests race for a limit while the API and a worker are killed: exactly the limit is admitted, and the books balance.
//!
//! `USAGE_RACE=full` races at each of R44's limits with a thousand requests; without it, at three of them with fewer.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acceptance::{Client, World, id_of, until, until_within};
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{balances, forge, tokens};

/// How long one race may take, killing included.
const LONG: Duration = Duration::from_secs(240);

/// The limits of R44 that a month or an hour has, by plan.
const MANIFEST: &str = r#"
[tenant]
name = "forge"
[plans.pilot]
limits.calls = { hour = 10, month = 50 }
[plans.pro]
limits.calls = { hour = 50, month = 1_000 }
[plans.enterprise]
limits.calls = { hour = 100, month = 50_000 }
[plans.library_free]
limits.calls = { month = 10 }
[plans.library_pro]
limits.calls = { month = 100 }
[plans.library_team]
limits.calls = { month = 500 }
[plans.meals_50]
limits.calls = { month = 50 }
[plans.meals_200]
limits.calls = { month = 200 }
[plans.month_of_1000]
limits.calls = { month = 1_000 }
[plans.month_of_50000]
limits.calls = { month = 50_000 }
[plans.unlimited]
limits.calls = { month = "unlimited" }
"#;

/// One race: the plan, what one request is charged, how many are admitted of a thousand.
const ALL: &[(&str, u64, usize)] = &[
    ("pilot", 1, 10),
    ("pro", 1, 50),
    ("enterprise", 1, 100),
    ("library_free", 1, 10),
    ("library_pro", 1, 100),
    ("library_team", 1, 500),
    ("meals_50", 1, 50),
    ("meals_200", 1, 200),
    ("month_of_1000", 2, 500),
    ("month_of_50000", 100, 500),
    ("unlimited", 1, 1_000),
];

/// Sends one request until it is answered with what it came to: the job's id, or nothing where there was no room.
async fn insist(client: &Client, user: &str, place: usize, amount: u64) -> Option<String> {
    let began = Instant::now();
    let job: Value = json!({"kind": "probe.run", "payload": {"meter": {"metric": "calls", "amount": amount}}});
    loop {
        let request = client.request(Method::POST, "/v1/jobs").header("Idempotency-Key", format!("{user}-{place}")).json(&job);
        match client.try_send(request).await {
            Ok(answer) if [200, 202].contains(&answer.status) => return Some(id_of(&answer.json())),
            Ok(answer) if answer.status == 429 => {
                answer.problem(429, "USAGE_LIMIT_EXCEEDED");
                return None;
            }
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
            Err(_) => {}
        }
        assert!(began.elapsed() < LONG, "request {place} of {user} was not answered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn exactly_the_limit_is_admitted_however_many_race_and_whatever_is_killed() {
    let is_full = std::env::var("USAGE_RACE").is_ok_and(|size| size == "full");
    let (races, requests) = if is_full { (ALL, 1_000) } else { (ALL.get(..3).unwrap_or_default(), 200) };
    let (world, worker) = World::with_worker().await;
    let _other = world.worker().await;
    let forge = world.tenant_of("forge", MANIFEST).await;
    for (plan, ..) in races {
        forge.put(&format!("/v1/users/{plan}"), &json!({ "plan": plan })).await.expect(201);
    }
    // All races at once, their requests in turns: so a batch holds those of many users.
    let next = Arc::new(AtomicUsize::new(0));
    let mut posters: JoinSet<Vec<(usize, Option<String>)>> = JoinSet::new();
    for _ in 0..64 {
        let (next, forge) = (Arc::clone(&next), forge.clone());
        posters.spawn(async move {
            let mut came = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (race, place) = (number % races.len(), number / races.len());
                if place >= requests {
                    return came;
                }
                let (user, amount, _) = races[race];
                came.push((race, insist(&forge.acting_for(user), user, place, amount).await));
            }
        });
    }
    let total = requests * races.len();
    for share in [3, 5] {
        until_within(LONG, "some have been answered", async || match next.load(Ordering::Relaxed) {
            answered if answered > total * share / 8 => Ok(()),
            answered => Err(answered),
        })
        .await;
        let (api, worker) = tokio::join!(world.api.kill9(), worker.kill9());
        api.unwrap();
        worker.unwrap();
    }
    let mut admitted: Vec<BTreeSet<String>> = vec![BTreeSet::new(); races.len()];
    let mut refused = vec![0; races.len()];
    while let Some(came) = posters.join_next().await {
        for (race, id) in came.unwrap() {
            match id {
                Some(id) => assert!(admitted[race].insert(id), "each request has a job of its own"),
                None => refused[race] += 1,
            }
        }
    }
    for ((plan, amount, most), (admitted, refused)) in races.iter().zip(admitted.iter().zip(&refused)) {
        let most = (*most).min(requests);
        assert_eq!((admitted.len(), *refused), (most, requests - most), "{plan}");
        let counted = format!("SELECT max(used) FROM usage_counter WHERE scope = '{plan}'");
        assert_eq!(world.number(counted).await, i64::try_from(most).unwrap() * i64::try_from(*amount).unwrap(), "{plan}");
    }
    let all: usize = admitted.iter().map(BTreeSet::len).sum();
    assert_eq!(world.number("SELECT count(*) FROM job").await, i64::try_from(all).unwrap(), "who was refused left no job");
    balances(&world).await;
    until_within(LONG, "every job has succeeded", async || match world.number("SELECT count(*) FROM job_state WHERE state <> 3").await {
        0 => Ok(()),
        open => Err(open),
    })
    .await;
    assert_eq!(world.number("SELECT count(*) FROM usage_reservation").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM usage_charge").await, i64::try_from(all).unwrap(), "each is charged once");
    balances(&world).await;
}

/// Or two that take the same ones wait for each other, until Postgres ends one of them.
#[tokio::test]
async fn counters_are_taken_in_one_order_by_whoever_reserves_and_whoever_gives_back() {
    let world = World::start().await;
    let (_, ada) = forge(&world).await;
    let mut job = tokens(5, 1, "ok");
    job["run_at"] = json!(world.now().await + TimeDelta::hours(1));
    let waiting = ada.create_id(&job).await;
    let pool = world.sandbox.pool();
    for gives_back in [false, true] {
        // A request names its user's counter first; in the order the product's comes before it.
        let mut first = pool.begin().await.unwrap();
        let lock = "SELECT FROM usage_counter WHERE scope = '' AND metric = 'tokens' FOR UPDATE";
        assert_eq!(sqlx::query(lock).execute(&mut *first).await.unwrap().rows_affected(), 1);
        let asks = async {
            if gives_back {
                ada.post_nothing(&format!("/v1/jobs/{waiting}/cancel")).await.expect(200)
            } else {
                ada.post("/v1/jobs", &job).await.expect(202)
            }
        };
        let looks = async {
            until("it waits for the product's", async || match world.number("SELECT count(*) FROM pg_locks WHERE NOT granted").await {
                0 => Err("nobody waits"),
                _ => Ok(()),
            })
            .await;
            let mut other = pool.begin().await.unwrap();
            let lock = "SELECT FROM usage_counter WHERE scope = 'ada' AND metric = 'tokens' FOR UPDATE NOWAIT";
            let taken = sqlx::query(lock).execute(&mut *other).await;
            assert!(taken.is_ok(), "it has its user's while it waits for the product's (giving back: {gives_back}): {taken:?}");
            other.rollback().await.unwrap();
            first.rollback().await.unwrap();
        };
        tokio::join!(asks, looks);
    }
    balances(&world).await;
}
