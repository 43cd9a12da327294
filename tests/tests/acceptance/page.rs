//! The example's page (`examples/web`) in Debian's Chromium, driven by Playwright: `page/judge.py` is the person at the screen.

use std::{path::Path, process::Stdio};

use acceptance::{World, until};
use sandbox::{Process, judges::python, web::Place};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// The product with its page.
struct Product {
    world: World,
    worker: Process,
    place: Option<Place>,
    key: String,
}

impl Product {
    async fn start() -> Self {
        let world = World::start().await;
        world.sandbox.load_promptlockr(200).await.unwrap();
        let place = Place::any().unwrap();
        let manifest = world.sandbox.directory().join("promptlockr.toml");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/promptlockr/tenant.toml");
        std::fs::write(&manifest, place.listed_in(&std::fs::read_to_string(source).unwrap())).unwrap();
        world.sandbox.apply_tenant(&manifest).await.unwrap();
        let key = world.sandbox.create_key("promptlockr", "test", "*").await.unwrap();
        let worker = world.worker().await;
        Self { world, worker, place: Some(place), key }
    }

    /// What the judge asks for, which a browser can't do.
    async fn answer(&self, asked: &str) -> Value {
        let world = &self.world;
        let backend = world.client.with_key(&self.key);
        match asked.split_once(' ').unwrap_or((asked, "")) {
            ("tell", number) => {
                let told = json!({
                    "type": "mention", "to": {"user": "demo"}, "title": format!("Number {number}"),
                    "message": "Somebody mentioned you in <b>a prompt</b>.",
                });
                json!(backend.post("/v1/notifications", &told).await.expect(202))
            }
            ("told", number) => {
                let count = format!("SELECT count(*) FROM notification WHERE title = 'Number {number}'");
                json!(
                    until("it stands in the inbox", async || if world.number(&count).await > 0 { Ok(true) } else { Err("not yet") }).await
                )
            }
            // A pause is heard of within a second; a worker that is not there takes nothing for certain.
            ("hold", _) => json!(self.worker.stop().await.unwrap().is_some()),
            ("release", _) => {
                self.worker.start().await.unwrap();
                json!(true)
            }
            ("stop", _) => json!(world.api.stop().await.is_ok()),
            ("start", _) => {
                world.api.start().await.unwrap();
                json!(true)
            }
            ("push", url) => {
                let push = json!({"user": "demo", "title": "Your export is ready", "body": "prompts.xlsx, 12 kB", "url": url});
                json!(backend.post("/v1/pushes", &push).await.expect(202))
            }
            ("subscriptions", _) => json!(world.number("SELECT count(*) FROM push_subscription").await),
            _ => panic!("the judge asked for {asked:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_page_is_live_and_a_push_is_shown_and_opened() {
    let mut product = Product::start().await;
    let address = product.world.api.address().unwrap();
    let web = product.place.take().unwrap().serve(address, product.key.clone()).await.unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/page/judge.py");
    let judge = tokio::task::spawn_blocking(|| python(&["playwright==1.65.2", "jeepney==0.9.0"]).unwrap()).await.unwrap();
    let mut judge = tokio::process::Command::from(judge);
    judge.arg(script).arg(web.url()).arg(product.world.sandbox.push.url()).arg(product.world.sandbox.directory().join("chromium"));
    if let Ok(pictures) = std::env::var("PAGE_PICTURES") {
        judge.arg(pictures);
    }
    let mut judge = judge.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(judge.stdout.take().unwrap()).lines();
    let mut answers = judge.stdin.take().unwrap();
    let mut done = false;
    while let Some(line) = lines.next_line().await.unwrap() {
        println!("{line}");
        if let Some(asked) = line.strip_prefix("ask ") {
            let answer = product.answer(asked).await;
            answers.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        done |= line == "done";
    }
    let status = judge.wait().await.unwrap();
    assert!(status.success() && done, "the judge ended with {status}; what it saw stands above");
}
