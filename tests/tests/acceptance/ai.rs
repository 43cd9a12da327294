//! Tasks for models: declared as data, asked for by HTTP, answered by a model's server, whatever that one does.

mod answers;
mod batches;
mod judges;
mod outages;
mod products;
mod providers;
mod streams;

use acceptance::{Client, World, id_of};
use sandbox::{Process, services::ai::Answer};
use serde_json::{Value, json};

/// An installation whose product `shop` has tasks, and its worker.
struct Desk {
    world: World,
    worker: Process,
    shop: Client,
}

impl Desk {
    /// With the tasks of [`TASKS`] and more.
    async fn start_with(more: &str) -> Self {
        let world = World::start().await;
        let shop = world.tenant_of("shop", &manifest(&world, "shop", more)).await;
        let worker = world.worker().await;
        Self { world, worker, shop }
    }

    async fn start() -> Self {
        Self::start_with("").await
    }

    /// Puts a task; its job's id.
    async fn ask(&self, task: &str, input: &Value) -> String {
        id_of(&self.shop.post(&format!("/v1/ai/{task}"), &json!({ "input": input })).await.expect(202))
    }

    /// How many calls of a model there were.
    fn calls_of(&self, model: &str) -> usize {
        self.world.sandbox.ai.calls().iter().filter(|call| call.body["model"] == model).count()
    }

    /// The states of a job's calls in the ledger, by their keys: 0 intended, 1 done, 2 unknown.
    async fn effects(&self, job: &str) -> String {
        let statement =
            format!("SELECT coalesce(string_agg(key || '=' || state, ' ' ORDER BY key), '') FROM effect WHERE job_id = '{job}'");
        self.world.text(statement).await
    }
}

/// What a model says next.
fn says(model: &str, text: &str) -> Answer {
    Answer { model: Some(model.to_owned()), text: Some(text.to_owned()), ..Answer::default() }
}

/// Whatever is asked of a task of `models`.
fn task(name: &str, models: &str, more: &str) -> String {
    format!("[ai.tasks.{name}]\nmodels = [{models}]\nprompt = \"{{{{ input.prompt }}}}\"\ninput = {{ type = \"object\" }}\n{more}\n")
}

/// A model of the provider `main`.
fn main_model(model: &str) -> String {
    format!("{{ provider = \"main\", model = \"{model}\" }}")
}

/// Two providers at the sandbox' server, one of either dialect.
fn manifest(world: &World, name: &str, more: &str) -> String {
    let url = world.sandbox.ai.url();
    let provider = |name: &str, kind: &str| {
        format!("[ai.providers.{name}]\nkind = \"{kind}\"\nbase_url = \"{url}\"\nkey_env = \"OFFSTAGE_AI_SANDBOX\"\n")
    };
    format!(
        "[tenant]\nname = \"{name}\"\n{}{}\n\
         [ai.tasks.enhance]\n\
         models = [{{ provider = \"main\", model = \"sandbox-small\" }}, {{ provider = \"other\", model = \"sandbox-claude\" }}]\n\
         system = \"You improve prompts.\"\n\
         prompt = \"Improve this prompt: {{{{ input.prompt }}}}\"\n\
         rules = [{{ field = \"/prompt\", min_chars = 10, max_chars = 100, refuse_markup = true, refuse_repetition = true }}]\n\
         input = {{ type = \"object\", additionalProperties = false, required = [\"prompt\"], properties = {{ prompt = {{ type = \"string\" }} }} }}\n\
         {more}",
        provider("main", "openai"),
        provider("other", "anthropic"),
    )
}

#[tokio::test]
async fn a_task_is_answered_by_a_model() {
    let desk = Desk::start().await;
    let ai = &desk.world.sandbox.ai;
    let asked = json!({"input": {"prompt": "Write a poem about the sea."}, "owner": "ada", "idempotency_key": "poem-1"});
    let accepted = desk.shop.post("/v1/ai/enhance", &asked).await.expect(202);
    // R3.
    assert_eq!((accepted["kind"].as_str(), accepted["estimate_seconds"].as_i64()), (Some("ai.run"), Some(15)), "{accepted}");
    let id = id_of(&accepted);
    let job = desk.shop.succeeded(&id).await;
    let result = &job["result"];
    assert!(result["output"].as_str().is_some_and(|text| text.contains("Write a poem about the sea.")), "{result}");
    assert_eq!((result["provider"].as_str(), result["model"].as_str()), (Some("main"), Some("sandbox-small")));
    assert!(result["usage"]["input_tokens"].as_u64() > Some(0) && result["usage"]["output_tokens"].as_u64() > Some(0), "{result}");
    assert_eq!((&result["usage"]["estimated"], result["calls"].as_array().map(Vec::len)), (&json!(false), Some(1)));
    assert!(result["calls"][0]["request_id"].as_str().is_some_and(|id| id.starts_with("req_")), "{result}");

    let calls = ai.calls();
    assert_eq!(calls.len(), 1);
    let expected = json!([
        {"role": "system", "content": "You improve prompts."},
        {"role": "user", "content": "Improve this prompt: Write a poem about the sea."},
    ]);
    assert_eq!((&calls[0].body["messages"], calls[0].key.as_str()), (&expected, ai.key()));

    // Asked for again under the same key it is the same answer, and no second call.
    assert_eq!(id_of(&desk.shop.post("/v1/ai/enhance", &asked).await.expect(200)), id);
    assert_eq!(ai.calls().len(), 1);
    // The job is its owner's.
    desk.shop.acting_for("eve").get(&format!("/v1/jobs/{id}")).await.problem(404, "job_not_found");
    assert!(!desk.worker.log().contains(ai.key()));
}

#[tokio::test]
async fn what_a_task_does_not_take_is_refused_at_the_door() {
    let desk = Desk::start().await;
    let refused = async |input: Value| {
        let answer = desk.shop.post("/v1/ai/enhance", &json!({ "input": input })).await;
        answer.problem(422, "validation_failed");
        answer.pointers()
    };
    for (input, pointers) in [
        (json!({}), vec!["/input"]),
        (json!([]), vec!["/input"]),
        (json!({"prompt": 7}), vec!["/input/prompt"]),
        (json!({"prompt": "Write a poem.", "colour": "red"}), vec!["/input"]),
        (json!({"prompt": "short"}), vec!["/input/prompt"]),
        (json!({"prompt": "x y ".repeat(26)}), vec!["/input/prompt", "/input/prompt"]),
        (json!({"prompt": "Look at <script>alert(1)</script>"}), vec!["/input/prompt"]),
        (json!({"prompt": "<img src=x onerror=alert(1)> in words"}), vec!["/input/prompt"]),
        (json!({"prompt": "go to java\tscript:alert(1) now"}), vec!["/input/prompt"]),
        (json!({"prompt": "buy buy buy buy buy buy buy buy buy buy"}), vec!["/input/prompt"]),
    ] {
        assert_eq!(refused(input.clone()).await, pointers, "{input}");
    }
    desk.shop.post("/v1/ai/other", &json!({"input": {}})).await.problem(404, "ai_task_not_found");
    desk.world.client.post("/v1/ai/enhance", &json!({"input": {"prompt": "Write a poem."}})).await.problem(404, "ai_task_not_found");
    let job = json!({"kind": "ai.run", "payload": {"task": "enhance", "input": {"prompt": "short"}}});
    assert_eq!(desk.shop.post("/v1/jobs", &job).await.pointers(), ["/payload/input/prompt"]);
    assert_eq!(desk.world.number("SELECT count(*) FROM job").await, 0);
    assert!(desk.world.sandbox.ai.calls().is_empty());
}
