//! Mail: sent once, to who wants it, and what becomes of it whatever the server says, at whatever stage.

mod inquiries;
mod kills;
mod stages;
mod wanted;

use acceptance::{Client, SetClock, World, until};
use chrono::TimeDelta;
use sandbox::{Launch, Process, judges::python, services::mail::Mail};
use serde_json::{Value, json};

/// RFC 8032, section 7.1, test 1, as PKCS #8; and its public key.
const DKIM_PRIVATE: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
const DKIM_PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

const HOOK_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Where people reach the API of these tests, as mails name it.
const PUBLIC_URL: &str = "https://mail.acme.example";

/// An installation whose product `shop` sends mail, and whose time stands until it is moved.
struct Post {
    world: World,
    worker: Process,
    shop: Client,
    clock: SetClock,
}

impl Post {
    async fn start() -> Self {
        let (world, clock) = World::start_at("2026-11-20T12:00:00Z", environment).await;
        let shop = world.tenant_of("shop", &manifest("shop")).await;
        let worker = world.start_worker(environment(clock.launch())).await;
        Self { world, worker, shop, clock }
    }

    /// Asks for a mail; its job's id.
    async fn mail(&self, email: &Value) -> String {
        acceptance::id_of(&self.shop.post("/v1/emails", email).await.expect(202))
    }

    /// What is known of a job's one message.
    async fn delivery(&self, job: &str) -> Value {
        let page = self.shop.get(&format!("/v1/deliveries?job={job}")).await.expect(200);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
        page["items"][0].clone()
    }

    /// The state of a job's effect in the ledger: 0 intended, 1 done, 2 unknown; -1 where there is none.
    async fn effect(&self, job: &str) -> i64 {
        self.world.number(format!("SELECT coalesce((SELECT state FROM effect WHERE job_id = '{job}' AND key = 'mail'), -1)")).await
    }

    /// Moves the time beyond the next try.
    fn later(&self) {
        self.clock.advance(TimeDelta::minutes(10));
    }

    /// The mails that arrived for somebody.
    fn arrived(&self, address: &str) -> Vec<Mail> {
        self.world.sandbox.mail.mails().into_iter().filter(|mail| mail.to == [address]).collect()
    }

    /// Cuts the connections that the worker keeps: the next mail begins at the greeting.
    async fn cut_connections(&self) {
        self.world.sandbox.mail.kill9();
        until("the server listens again", async || self.world.sandbox.mail.start().await).await;
    }
}

fn environment(launch: Launch) -> Launch {
    launch.env("OFFSTAGE_PUBLIC_URL", PUBLIC_URL).env("OFFSTAGE_DKIM_SHOP", DKIM_PRIVATE).env("OFFSTAGE_HOOK_SHOP", HOOK_KEY)
}

fn manifest(name: &str) -> String {
    format!(
        "[tenant]\nname = \"{name}\"\n[mail]\nserver_env = \"OFFSTAGE_SMTP_URL\"\nhook_key_env = \"OFFSTAGE_HOOK_SHOP\"\n\
         inquiries_to = {{ email = \"sales@{name}.example\" }}\n\
         from = {{ email = \"no-reply@{name}.example\", name = \"The Shop\" }}\n\
         dkim = {{ key_env = \"OFFSTAGE_DKIM_SHOP\", domain = \"{name}.example\", selector = \"offstage\" }}\n"
    )
}

fn to(address: &str) -> Value {
    json!({"to": {"email": address}, "subject": "Your order", "text": "It is on its way.", "category": "orders"})
}

/// What Python's own library makes of a mail: headers, parts, and what is wrong with it.
fn parsed(mail: &Mail) -> Value {
    const PARSE: &str = "import email, email.policy, json, sys\n\
        mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)\n\
        parts = [part for part in mail.walk() if not part.is_multipart()]\n\
        defects = [repr(defect) for part in mail.walk() for defect in part.defects]\n\
        print(json.dumps({\n\
        \t'headers': {name.lower(): str(value) for name, value in mail.items()}, 'type': mail.get_content_type(),\n\
        \t'types': [part.get_content_type() for part in parts],\n\
        \t'texts': [part.get_content().replace('\\r\\n', '\\n') for part in parts], 'defects': defects}))";
    let said: Value = serde_json::from_slice(&judge(&[], PARSE, &[], &mail.bytes)).unwrap();
    assert_eq!(said["defects"], json!([]), "{said}");
    said
}

fn judge(packages: &[&str], script: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::process::Stdio;
    let mut python = python(packages).expect("python3 with pip");
    python.args(["-c", script]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = python.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `dkimpy` takes the signature, by this key alone, and it covers what unsubscribes.
fn dkim_holds(mail: &Mail) {
    let script = "import re, sys\n\
        import dkim\n\
        mail = sys.stdin.buffer.read()\n\
        def verified(mail):\n\
        \ttry:\n\
        \t\treturn dkim.verify(mail, dnsfunc=lambda name, timeout=5: sys.argv[1].encode())\n\
        \texcept dkim.DKIMException:\n\
        \t\treturn False\n\
        assert verified(mail)\n\
        signed = b''.join(re.search(rb'h=([^;]*);', mail).group(1).lower().split()).split(b':')\n\
        for name in (b'from', b'to', b'subject', b'message-id', b'list-unsubscribe', b'list-unsubscribe-post'):\n\
        \tassert name in signed, name\n\
        assert not verified(mail.replace(b'One-Click', b'Two-Click'))";
    judge(&["dkimpy[ed25519]==1.1.8"], script, &[&format!("v=DKIM1; k=ed25519; p={DKIM_PUBLIC}")], &mail.bytes);
}

#[tokio::test]
async fn a_mail_arrives_as_it_was_asked_for() {
    let post = Post::start().await;
    let mut email = json!({
        "to": {"email": "ada@example.com", "name": "Ada Lovelace"},
        "from": {"email": "support@shop.example", "name": "Grüße"},
        "reply_to": {"email": "inquirer@example.org"},
        "subject": "Ihre Bestellung – fertig",
        "text": "Hallo.\n\nAbmelden: {{unsubscribe_url}}\n",
        "html": "<p>Hallo. <a href=\"{{unsubscribe_url}}\">Abmelden</a></p>",
        "category": "news",
        "headers": {"X-Campaign": "autumn"},
        "unsubscribe": true,
        "owner": "ada",
        "idempotency_key": "order-1",
    });
    let id = post.mail(&email).await;
    let job = post.shop.succeeded(&id).await;
    let mails = post.arrived("ada@example.com");
    assert_eq!(mails.len(), 1);
    assert_eq!((mails[0].from.as_str(), mails[0].tls, mails[0].user.is_some()), ("support@shop.example", true, true));
    let said = parsed(&mails[0]);
    let header = |name: &str| said["headers"][name].as_str().unwrap_or_else(|| panic!("{name}: {said}")).to_owned();
    assert_eq!((said["type"].as_str(), &said["types"]), (Some("multipart/alternative"), &json!(["text/plain", "text/html"])));
    assert_eq!(header("message-id"), format!("<{id}@shop.example>"));
    assert_eq!(job["result"]["message_id"], header("message-id"));
    assert_eq!((header("subject"), header("reply-to")), ("Ihre Bestellung – fertig".to_owned(), "inquirer@example.org".to_owned()));
    assert_eq!((header("x-campaign"), header("auto-submitted")), ("autumn".to_owned(), "auto-generated".to_owned()));
    let link = header("list-unsubscribe").trim_matches(['<', '>']).to_owned();
    assert!(link.starts_with(&format!("{PUBLIC_URL}/u/")), "{link}");
    assert!(said["texts"].as_array().unwrap().iter().all(|text| text.as_str().unwrap().contains(&link)), "{said}");
    dkim_holds(&mails[0]);

    // Asked for again under the same key it is the same mail.
    assert_eq!(acceptance::id_of(&post.shop.post("/v1/emails", &email).await.expect(200)), id);
    email["subject"] = json!("Another");
    post.shop.post("/v1/emails", &email).await.problem(409, "idempotency_conflict");

    // What the log knows, and to whom it tells it.
    let delivery = post.delivery(&id).await;
    let known = |field: &str| delivery[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (known("channel"), known("state"), known("user"), known("category")),
        ("email".into(), "sent".into(), "ada".into(), "news".into())
    );
    assert_eq!((&delivery["final"], &delivery["repeated"]), (&json!(true), &json!(false)));
    let count = async |client: &Client, query: &str| {
        client.get(&format!("/v1/deliveries?{query}")).await.expect(200)["items"].as_array().unwrap().len()
    };
    assert_eq!(count(&post.shop, "user=ada").await, 1);
    assert_eq!(count(&post.shop.acting_for("ada"), "").await, 1);
    assert_eq!(count(&post.shop.acting_for("eve"), &format!("job={id}")).await, 0);
    assert_eq!(count(&post.world.client, &format!("job={id}")).await, 0);
    post.shop.get("/v1/deliveries").await.problem(400, "query_invalid");
    // Of an address only the job that was asked for knows.
    for table in ["delivery", "effect", "suppression", "job_state", "job_result"] {
        let found = post.world.number(format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%example.com%'")).await;
        assert_eq!(found, 0, "{table}");
    }
    assert!(!post.worker.log().contains("ada@example.com"));
}

#[tokio::test]
async fn what_can_t_be_sent_is_refused_at_the_door() {
    let post = Post::start().await;
    let refused = async |client: &Client, change: Value| {
        let mut email = to("ada@example.com");
        email.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let answer = client.post("/v1/emails", &email).await;
        answer.problem(422, "validation_failed");
        answer.pointers()
    };
    for (change, pointers) in [
        (json!({"to": {"email": "ada@example.com, eve@example.com"}}), vec!["/to/email"]),
        (json!({"from": {"email": "no-reply@other.example"}}), vec!["/from/email"]),
        (json!({"headers": {"Bcc": "eve@example.com"}}), vec!["/headers/Bcc"]),
        (json!({"subject": "a\r\nBcc: eve@example.com"}), vec!["/subject"]),
        (json!({"category": "News!", "text": ""}), vec!["/category", "/text"]),
        (json!({"bcc": ["eve@example.com"]}), vec!["/bcc"]),
    ] {
        assert_eq!(refused(&post.shop, change.clone()).await, pointers, "{change}");
    }
    // A product without [mail] sends none.
    assert_eq!(refused(&post.world.client, json!({})).await, [""]);
    assert_eq!(post.world.number("SELECT count(*) FROM job").await, 0);
}

#[tokio::test]
async fn what_is_no_use_any_more_is_not_sent() {
    let post = Post::start().await;
    let shop = &post.shop;
    shop.pause("email").await;
    let mut code = to("ada@example.com");
    code["send_by"] = json!((post.clock.now() + TimeDelta::minutes(5)).to_rfc3339());
    let id = post.mail(&code).await;
    post.later();
    shop.post_nothing("/v1/queues/email/resume").await.expect(200);
    assert_eq!(shop.ended(&id).await["state"], "expired");
    let delivery = post.delivery(&id).await;
    assert_eq!(
        (delivery["state"].as_str(), delivery["why"].as_str(), &delivery["final"]),
        (Some("not_sent"), Some("expired"), &json!(true))
    );
    assert!(post.arrived("ada@example.com").is_empty());
}
