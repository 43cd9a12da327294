//! Statistics of other people's services (R63): what readers get, what vendors are asked, and when.

mod doors;
mod keep;
mod readers;
mod summaries;
mod vendors;

use acceptance::{Client, World, id_of, until};
use serde_json::{Value, json};

/// One source of each vendor; GitHub's twice, with a credential and without.
const MANIFEST: &str = r#"
[tenant]
name = "community"

[stats.tools]
about = "github_repository"
subject = "acme/tools"
credential_env = "OFFSTAGE_STATS_GITHUB"

[stats.open]
about = "github_repository"
subject = "acme/open"

[stats.makers]
about = "reddit_community"
subject = "makers"
credential_env = "OFFSTAGE_STATS_REDDIT"
reddit_user = "ada"

[stats.chat]
about = "discord_invite"
subject = "acme"

[stats.model]
about = "hugging_face_model"
subject = "acme/small"
"#;

/// The product, and what the vendors know of it.
async fn community(world: &World) -> Client {
    let vendors = &world.sandbox.vendors;
    vendors.put("/github/repos/acme/tools", &repository(1_000));
    vendors.put("/github/repos/acme/open", &repository(500));
    vendors.put("/reddit/r/makers", &json!({"kind": "t5", "data": {"subscribers": 8_000, "accounts_active": 40}}));
    vendors.put("/discord/invites/acme", &json!({"approximate_member_count": 2_000, "approximate_presence_count": 250}));
    vendors.put("/hugging_face/api/models/acme/small", &json!({"likes": 70, "downloads": 900, "lastModified": "2020-01-01T00:00:00.000Z"}));
    let json = format!("\n[stats.any]\nabout = \"json\"\nurl = \"{}/json/any\"\nfigures = {{ members = \"/data/0/n\" }}\n", vendors.url());
    vendors.put("/json/any", &json!({"data": [{"n": 5}]}));
    world.tenant_of("community", &(MANIFEST.to_owned() + &json)).await
}

fn repository(stars: u64) -> Value {
    json!({"stargazers_count": stars, "subscribers_count": 7, "forks_count": 3, "open_issues_count": 0, "pushed_at": "2020-01-01T00:00:00Z"})
}

/// Has a statistic refreshed: by a new job, or by the one that is on its way.
async fn refresh(client: &Client, source: &str) -> String {
    let answer = client.post_nothing(&format!("/v1/stats/{source}/refresh")).await;
    id_of(&answer.expect(if answer.status == 200 { 200 } else { 202 }))
}

/// The same, and what came of it.
async fn refreshed(client: &Client, source: &str) -> Value {
    client.succeeded(&refresh(client, source).await).await["result"].clone()
}

async fn statistic(client: &Client, source: &str) -> Value {
    client.get(&format!("/v1/stats/{source}")).await.expect(200)
}

/// Waits until a job is put off.
async fn put_off(client: &Client, job: &str) -> Value {
    client.wait_for(job, "put off", |job| job["state"] == "waiting" && job["reason"] != "window").await
}

/// By a wish of somebody.
async fn wished(client: &Client, source: &str) -> String {
    id_of(&client.post_nothing(&format!("/v1/stats/{source}/refresh")).await.expect(202))
}

async fn measured(client: &Client, source: &str) -> Value {
    until("it is measured", async || {
        let found = statistic(client, source).await;
        if found["state"] == "measured" { Ok(found) } else { Err(found) }
    })
    .await
}
