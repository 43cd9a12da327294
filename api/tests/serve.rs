//! `api serve` as a process: health, figures, the contract, signals.

use std::time::{Duration, Instant};

use reqwest::Client;
use sandbox::{Launch, Options, Sandbox};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_what_is_missing() {
    let world = Sandbox::start(Options::test()).await.unwrap();
    let api = world.start_api(Launch::new().once()).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test is the client")]
    let client = Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
    let get = async |path: &str| {
        let response = client.get(format!("{}{path}", api.url())).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    };
    let until = async |path: &str, wanted: (u16, &str)| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (status, body) = get(path).await;
            if (status, body["status"].as_str().unwrap()) == wanted {
                return body;
            }
            assert!(Instant::now() < deadline, "{path} says {status} {body}, not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };

    let well = until("/health/ready", (200, "healthy")).await;
    assert_eq!(well["version"], "0.1.0");
    let (status, contract) = get("/openapi.json").await;
    assert_eq!((status, contract["openapi"].as_str()), (200, Some("3.1.0")));
    let (_, figures) = get("/metrics").await;
    let figures = figures.as_str().unwrap();
    assert!(
        figures.contains("offstage_http_request_duration_seconds_bucket{route=\"/health/ready\",method=\"GET\",status=\"200\""),
        "{figures}"
    );
    assert!(figures.contains("offstage_build_info{program=\"api\""));

    // Without Redis jobs are still accepted; without Postgres nothing is, but the process lives.
    world.redis.stop().await.unwrap();
    let degraded = until("/health/ready", (200, "degraded")).await;
    assert_eq!(
        (degraded["checks"]["redis"]["status"].as_str(), degraded["checks"]["postgres"]["status"].as_str()),
        (Some("degraded"), Some("healthy"))
    );
    world.redis.start().await.unwrap();
    until("/health/ready", (200, "healthy")).await;
    world.postgres.stop().await.unwrap();
    until("/health/ready", (503, "unhealthy")).await;
    until("/health/live", (200, "healthy")).await;
    world.postgres.start().await.unwrap();
    until("/health/ready", (200, "healthy")).await;

    // A database that lacks a migration of this version must not be written to.
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .execute(world.pool())
        .await
        .unwrap();
    let behind = until("/health/ready", (503, "unhealthy")).await;
    assert!(behind["checks"]["schema"]["detail"].as_str().unwrap().contains("api migrate"));

    let exit = api.stop().await.unwrap().unwrap();
    assert_eq!(exit.code, Some(0), "{}", api.log());
    world.stop().await.unwrap();
}
