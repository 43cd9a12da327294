//! Jobs followed live: by streams of events, and by addresses that show one job.

use std::time::Duration;

use acceptance::{Client, Event, World, id_of, is_terminal, probe, until};
use chrono::TimeDelta;
use reqwest::Method;
use sandbox::Launch;
use serde_json::{Value, json};

fn states(events: &[Event]) -> Vec<&str> {
    events.iter().filter_map(|event| event.data["state"].as_str()).collect()
}

/// A job as `GET` shows it, but for what events leave out and what depends on the moment.
fn lasting(job: &Value) -> Value {
    let mut job = job.clone();
    for field in ["payload", "poll_after_ms", "estimate_seconds"] {
        job.as_object_mut().unwrap().remove(field);
    }
    job
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_and_who_saw_it_is_not_kept() {
    let (world, worker) = World::with_worker().await;
    let client = &world.client;
    let at = world.now().await + TimeDelta::seconds(2);
    let id = client.create_id(&json!({"kind": "probe.run", "payload": {"sleep_ms": 300}, "run_at": at})).await;
    let path = format!("/v1/jobs/{id}/events");
    let (mut one, mut other) = (client.events(&path, None).await, client.events(&path, None).await);
    let first = one.must("the present state").await;
    assert_eq!((first.name.as_str(), first.data["state"].as_str(), first.id.as_str()), ("changed", Some("waiting"), "1"));
    assert_eq!(lasting(&first.data), lasting(&client.job(&id).await), "one status contract");
    let rest = one.rest().await;
    let last = rest.last().unwrap();
    assert_eq!((last.name.as_str(), last.data["state"].as_str()), ("ended", Some("succeeded")), "{:?}", states(&rest));
    assert_eq!(lasting(&last.data), lasting(&client.job(&id).await));
    assert_eq!(last.data["result"], json!({"slept_ms": 300}));
    let versions: Vec<i64> = rest.iter().map(|event| event.id.parse().unwrap()).collect();
    assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
    assert!(rest[..rest.len() - 1].iter().all(|event| event.name == "changed" && !is_terminal(&event.data)));
    assert!(one.retry.is_some_and(|retry| (1_000..=2_000).contains(&retry)));
    assert_eq!(states(&other.rest().await).last(), Some(&"succeeded"), "everybody hears of it");

    // Who saw the end is told to stay away; who did not gets it at once.
    let again = client.listen(&path, Some(&last.id)).send().await.unwrap();
    assert_eq!(again.status().as_u16(), 204);
    let missed = client.events(&path, Some(&(versions[versions.len() - 1] - 1).to_string())).await.rest().await;
    assert_eq!((missed.len(), missed[0].name.as_str()), (1, "ended"));
    assert_eq!(client.events(&path, None).await.rest().await.len(), 1);
    assert_eq!(client.events(&path, Some("not ours")).await.rest().await.len(), 1);

    // A job that runs again goes on, for those too who saw its end.
    let failed = client.create_id(&probe(&json!({"outcome": "fail"}))).await;
    let path = format!("/v1/jobs/{failed}/events");
    let ended = client.events(&path, None).await.until("its end", |event| event.name == "ended").await;
    worker.terminate().await.unwrap();
    worker.wait_exit(Duration::from_secs(60)).await.unwrap();
    let _ = client.post_nothing(&format!("/v1/jobs/{failed}/retry")).await.expect(202);
    let mut again = client.events(&path, Some(&ended.id)).await;
    assert_eq!(again.must("what came after").await.data["state"], "waiting");
    let _ = client.post_nothing(&format!("/v1/jobs/{failed}/cancel")).await.expect(200);
    assert_eq!(states(&again.rest().await), ["cancelled"]);
    // What is gone ends its streams, and is 410 from then on.
    until("nobody streams any more", async || match world.figure(&world.api, "offstage_streams", &[]).await {
        0.0 => Ok(()),
        open => Err(open),
    })
    .await;
}

#[tokio::test]
async fn all_jobs_are_followed_from_a_picture_on() {
    let (world, _worker) = World::with_worker().await;
    let later = world.now().await + TimeDelta::hours(1);
    let planned = json!({"kind": "probe.run", "payload": {}, "run_at": later});
    let (ada, eve) = (world.client.acting_for("ada"), world.client.acting_for("eve"));
    let (hers, others) = (ada.create_id(&planned).await, eve.create_id(&planned).await);
    let done = ada.create_id(&probe(&json!({}))).await;
    ada.succeeded(&done).await;

    let mut all = world.client.events("/v1/events", None).await;
    let picture = [all.must("a job").await, all.must("a job").await];
    let ids: Vec<_> = picture.iter().map(|event| id_of(&event.data)).collect();
    assert_eq!(ids, [hers.clone(), others.clone()], "what is unfinished");
    let whole = all.must("the picture's end").await;
    assert_eq!((whole.name.as_str(), whole.data.clone()), ("snapshot", json!({"unfinished": 2, "complete": true})));

    let mut of_ada = ada.events("/v1/events?kind=probe.run", None).await;
    assert_eq!(id_of(&of_ada.must("her job").await.data), hers);
    let mark = of_ada.must("the picture's end").await;
    let mut exports = world.client.events("/v1/events?kind=export.create", None).await;
    assert_eq!(exports.must("the picture's end").await.data["unfinished"], 0);

    // What happens is told to those whose it is.
    let new = ada.create_id(&probe(&json!({"sleep_ms": 100}))).await;
    let _ = eve.post_nothing(&format!("/v1/jobs/{others}/cancel")).await.expect(200);
    for stream in [&mut all, &mut of_ada] {
        let ended = stream.until("her new job's end", |event| event.name == "ended" && event.data["id"] == new.as_str()).await;
        assert_eq!(ended.data["state"], "succeeded");
        assert!(ended.data.get("result").is_none() && ended.data.get("payload").is_none(), "as in lists: {}", ended.data);
    }
    // Who connects again hears of what ended meanwhile.
    drop(of_ada);
    let meanwhile = ada.create_id(&probe(&json!({}))).await;
    ada.succeeded(&meanwhile).await;
    let mut of_ada = ada.events("/v1/events", Some(&mark.id)).await;
    let mut heard = Vec::new();
    loop {
        let event = of_ada.must("the picture's end").await;
        if event.name == "snapshot" {
            break;
        }
        heard.push((id_of(&event.data), event.name));
    }
    assert!(heard.contains(&(meanwhile, "ended".to_owned())) && heard.contains(&(hers, "changed".to_owned())), "{heard:?}");
    assert!(heard.iter().all(|(id, _)| *id != others), "nobody else's: {heard:?}");
    ada.get("/v1/events?owner=eve").await.problem(400, "query_invalid");
    ada.get("/v1/events?queue=nothing").await.problem(400, "query_invalid");
}

#[tokio::test]
async fn streams_end_with_the_right_to_them_and_with_the_program() {
    let world = World::start_with(Launch::new().env("OFFSTAGE_STREAMS_OF_TENANT", "3")).await;
    let later = world.now().await + TimeDelta::hours(1);
    let id = world.client.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": later})).await;
    let path = format!("/v1/jobs/{id}/events");
    let revoked = world.key("*").await;
    let mut stream = revoked.events(&path, None).await;
    stream.must("the present state").await;
    let mut many = revoked.events("/v1/events", None).await;
    many.until("the picture", |event| event.name == "snapshot").await;
    let mut stays = world.client.events(&path, None).await;
    stays.must("the present state").await;

    // Places are bounded by tenant, and the others have theirs.
    world.client.get(&path).await.problem(503, "overloaded");
    world.client.get("/v1/events").await.problem(503, "overloaded");
    let elsewhere = world.tenant("globex").await;
    let other = elsewhere.create_id(&json!({"kind": "probe.run", "payload": {}, "run_at": later})).await;
    let mut others = elsewhere.events(&format!("/v1/jobs/{other}/events"), None).await;
    others.must("the present state").await;
    // Somebody follows it: to another tenant it does not exist all the same, nor to another user.
    elsewhere.get(&path).await.problem(404, "job_not_found");
    elsewhere.acting_for("eve").get(&format!("/v1/jobs/{other}/events")).await.problem(404, "job_not_found");

    let tail = revoked.key().to_owned().split_off(revoked.key().len() - 4);
    let key: String = world.text(format!("SELECT id::text FROM api_key WHERE last_four = '{tail}'")).await;
    world.sandbox.run_api(["key", "revoke", &key]).await.unwrap();
    assert!(stream.rest().await.is_empty() && many.rest().await.is_empty(), "they end, and tell nothing more");
    let answer = world.client.get("/metrics").await;
    assert!(answer.text().contains("offstage_streams_refused_total 2"));

    // A stop ends them at once: nobody drains for as long as a client listens.
    let asked = std::time::Instant::now();
    world.api.terminate().await.unwrap();
    assert!(stays.rest().await.is_empty());
    let exit = world.api.wait_exit(Duration::from_secs(60)).await.unwrap();
    println!("stopped after {:?} with a stream open", asked.elapsed());
    assert_eq!(exit.code, Some(0));
}

/// What a browser gets by an address, from another page.
async fn open(client: &Client, url: &str) -> acceptance::Answer {
    client.send(client.request(Method::GET, url).header("Origin", "https://shop.example.com")).await
}

#[tokio::test]
async fn an_address_shows_one_job_until_it_is_taken_back() {
    let (world, _worker) = World::with_worker().await;
    let nobody = world.client.without_key();
    let ada = world.client.acting_for("ada");
    let planned = json!({"kind": "probe.run", "payload": {"pad": "private"}, "run_at": world.now().await + TimeDelta::hours(1)});
    let id = ada.create_id(&planned).await;
    let links = format!("/v1/jobs/{id}/links");
    let link = world.client.post_nothing(&links).await.expect(201);
    let (url, events) = (link["url"].as_str().unwrap(), link["events_url"].as_str().unwrap());
    let token = url.rsplit('/').next().unwrap();
    assert_eq!((token.len(), events), (32, format!("{url}/events").as_str()));

    let shown = open(&nobody, url).await;
    let job = shown.expect(200);
    assert_eq!((id_of(&job), job.get("payload")), (id.clone(), None));
    assert_eq!((shown.header("access-control-allow-origin"), shown.header("access-control-allow-credentials")), ("*", ""));
    assert_eq!((shown.header("cache-control"), shown.header("etag")), ("no-store", "W/\"1u\""));
    let unchanged = nobody.send(nobody.request(Method::GET, url).header("If-None-Match", shown.header("etag"))).await;
    assert_eq!(unchanged.status, 304);
    let asked = nobody.request(Method::OPTIONS, events).header("Origin", "https://shop.example.com");
    let asked =
        nobody.send(asked.header("Access-Control-Request-Method", "GET").header("Access-Control-Request-Headers", "last-event-id")).await;
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (200, "*"));

    let mut stream = nobody.events(events, None).await;
    assert_eq!(id_of(&stream.must("the present state").await.data), id);
    // It opens this job and no other door.
    nobody.get(&format!("/v1/jobs/{id}")).await.problem(401, "key_missing");
    assert_eq!(nobody.post_nothing(url).await.status, 405);

    // Taken back: whoever reads or listens is out.
    let other = world.client.post(&links, &json!({"expires_in_seconds": 60})).await.expect(201);
    assert_eq!(open(&nobody, other["url"].as_str().unwrap()).await.status, 200);
    let gone = world.client.send(world.client.request(Method::DELETE, &links)).await;
    assert_eq!(gone.status, 204);
    assert!(stream.rest().await.is_empty());
    for url in [url, events, other["url"].as_str().unwrap()] {
        let answer = open(&nobody, url).await;
        answer.problem(404, "link_not_found");
        assert_eq!(answer.header("access-control-allow-origin"), "*", "a page can read why");
    }

    // One that has expired, and the twenty first.
    let mut urls = Vec::new();
    for _ in 0..21 {
        let link = world.client.post(&links, &json!({})).await.expect(201);
        urls.push(link["url"].as_str().unwrap().to_owned());
    }
    open(&nobody, &urls[0]).await.problem(404, "link_not_found");
    assert_eq!(open(&nobody, &urls[1]).await.status, 200);
    world.execute("UPDATE job_link SET expires_at = now() - interval '1 second'").await;
    open(&nobody, &urls[20]).await.problem(404, "link_not_found");
    for life in [59, 604_801] {
        let answer = world.client.post(&links, &json!({"expires_in_seconds": life})).await;
        answer.problem(422, "validation_failed");
        assert_eq!(answer.pointers(), ["/expires_in_seconds"]);
    }
    // The token is nowhere but with whom it was given to.
    assert!(!world.api.log().contains(token));
    assert_eq!(world.number(format!("SELECT count(*) FROM job_link WHERE job_link::text LIKE '%{token}%'")).await, 0);

    // A browser that came too late, or comes again after the end.
    let id = ada.create_id(&probe(&json!({}))).await;
    ada.succeeded(&id).await;
    let link = world.client.post_nothing(&format!("/v1/jobs/{id}/links")).await.expect(201);
    let events = link["events_url"].as_str().unwrap();
    let ended = nobody.events(events, None).await.rest().await;
    assert_eq!((ended.len(), ended[0].name.as_str()), (1, "ended"));
    assert_eq!(nobody.listen(events, Some(&ended[0].id)).send().await.unwrap().status().as_u16(), 204);
}
