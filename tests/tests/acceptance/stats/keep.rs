//! How often a vendor wants to be asked, how long readings are kept, and what is left of a statistic that nobody declares any more.

use acceptance::{World, until};
use chrono::TimeDelta;
use serde_json::Value;

use super::{
    community, put_off, refresh, refreshed, repository, statistic,
    vendors::{scripted, time},
};

#[tokio::test]
async fn a_vendor_that_says_how_often_it_is_asked_no_sooner() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    world.start_worker(clock.launch()).await;
    let vendors = &world.sandbox.vendors;
    let asked = || vendors.calls("github").iter().filter(|call| call.path == "/repos/acme/tools").count();
    vendors.script(scripted("/tools", 200, &[("x-poll-interval", "90")], &repository(1_000)));
    let began = clock.now();
    assert_eq!(refreshed(&client, "tools").await["outcome"], "measured");
    let found = statistic(&client, "tools").await;
    assert_eq!((time(&found["not_before"]) - began).num_seconds(), 90, "{found}");
    // Whoever wishes it sooner gets it then; another statistic of the same vendor is its own.
    clock.advance(TimeDelta::seconds(89));
    let wished = client.post_nothing("/v1/stats/tools/refresh").await.expect(202)["id"].as_str().unwrap().to_owned();
    put_off(&client, &wished).await;
    assert_eq!(refreshed(&client, "open").await["outcome"], "measured");
    assert_eq!(asked(), 1);
    assert_eq!(statistic(&client, "tools").await["figures"]["members"], 1_000);
    clock.advance(TimeDelta::seconds(40));
    client.succeeded(&wished).await;
    assert_eq!(asked(), 2);
    // It says so no more, and is asked when somebody wants to know.
    assert_eq!(statistic(&client, "tools").await["not_before"], Value::Null);
    refreshed(&client, "tools").await;
    assert_eq!(asked(), 3);
}

#[tokio::test]
async fn readings_are_kept_for_as_long_as_is_said_and_forgotten_with_their_statistic() {
    let (world, clock) = World::start_now().await;
    let client = community(&world).await;
    let manifest = super::MANIFEST.replace("subject = \"acme/tools\"", "subject = \"acme/tools\"\nkeep_days = 2\nevery_seconds = 604800");
    world.tenant_of("community", &manifest).await;
    let worker = world.start_worker(clock.launch()).await;
    let history = async || {
        let month = (clock.now() - TimeDelta::days(30)).format("%FT%TZ");
        let found = client.get(&format!("/v1/stats/tools/history?from={month}")).await.expect(200);
        found["items"].as_array().unwrap().iter().map(|item| item["figures"]["members"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    for day in 0..5 {
        world.sandbox.vendors.put("/github/repos/acme/tools", &repository(1_000 + day));
        client.succeeded(&refresh(&client, "tools").await).await;
        clock.advance(TimeDelta::hours(25));
    }
    // When the last one was kept the others were 25, 50, 75 and 100 hours old.
    assert_eq!(history().await, [1_004, 1_003]);
    assert_eq!(world.number("SELECT count(*) FROM statistic_reading WHERE source = 'tools'").await, 2);

    // Its age is told; of one that nobody declares any more there is nothing, neither kept nor told.
    let age = async || world.figure(&worker, "offstage_statistic_age_seconds", &["source=\"tools\""]).await;
    until("its age is told", async || match age().await {
        told if told >= 24.0 * 3_600.0 => Ok(()),
        told => Err(told),
    })
    .await;
    let left =
        "SELECT count(*) FROM statistic_reading WHERE source = 'tools' UNION ALL SELECT count(*) FROM statistic WHERE source = 'tools'";
    let without = super::MANIFEST.split("[stats.tools]").next().unwrap().to_owned()
        + "[stats.open]"
        + super::MANIFEST.split("[stats.open]").nth(1).unwrap();
    world.tenant_of("community", &without).await;
    until("the program knows of it", async || match client.get("/v1/stats/tools").await.status {
        404 => Ok(()),
        status => Err(status),
    })
    .await;
    until("it is forgotten", async || {
        // An hour of Postgres' clock is not waited for.
        world.execute("UPDATE duty SET taken_until = clock_timestamp() WHERE name = 'forget_statistics'").await;
        match world.number(format!("SELECT sum(count) FROM ({left}) AS left_over")).await {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    until("its age is told no more", async || match age().await {
        told if told.is_nan() => Ok(()),
        told => Err(told),
    })
    .await;
    assert_eq!(client.get("/v1/stats").await.expect(200)["items"].as_array().unwrap().len(), 4);
    client.get("/v1/stats/tools/history").await.problem(404, "statistic_not_found");
    assert_eq!(world.number("SELECT count(*) FROM schedule WHERE name = 'stats.tools'").await, 0);
}
