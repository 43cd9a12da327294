//! Jobs that the clock makes: asked for over HTTP or by the manifest, each tick once.

mod doors;
mod manifest;
mod replicas;
mod ticks;

use acceptance::{Client, SetClock, World, id_of, until};
use sandbox::Process;
use serde_json::Value;

/// An installation whose business time stands still until the test moves it.
struct Planned {
    world: World,
    clock: SetClock,
}

impl Planned {
    async fn at(time: &str) -> Self {
        let (world, clock) = World::start_at(time, |api| api).await;
        Self { world, clock }
    }

    async fn worker(&self) -> Process {
        self.world.start_worker(self.clock.launch()).await
    }

    fn client(&self) -> &Client {
        &self.world.client
    }

    async fn create(&self, schedule: &Value) -> String {
        id_of(&self.client().post("/v1/schedules", schedule).await.expect(201))
    }

    async fn schedule(&self, id: &str) -> Value {
        self.client().get(&format!("/v1/schedules/{id}")).await.expect(200)
    }

    /// The ticks of a schedule, the first one first.
    async fn history(&self, id: &str) -> Vec<Value> {
        let page = self.client().get(&format!("/v1/schedules/{id}/history?limit=200")).await.expect(200);
        assert_eq!(page["next_cursor"], Value::Null, "more than a page");
        page["items"].as_array().unwrap().iter().rev().cloned().collect()
    }

    /// Waits until a schedule's ticks are as wanted.
    async fn ticked(&self, id: &str, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        until(what, async || {
            let ticks = self.history(id).await;
            if wanted(&ticks) { Ok(ticks) } else { Err(ticks) }
        })
        .await
    }
}

/// What became of ticks, in a word each.
fn outcomes(ticks: &[Value]) -> Vec<&str> {
    ticks.iter().map(|tick| tick["outcome"].as_str().unwrap()).collect()
}
