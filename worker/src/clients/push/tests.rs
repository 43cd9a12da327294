use std::{io::Write, process::Stdio};

use sandbox::{
    Fault, Rule,
    judges::python,
    services::push::{Browser, PushService},
};
use serde_json::json;
use shared::{
    job::{Failure, FailureClass},
    outbound::Guard,
};

use super::*;

const KEY: &str = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94";
const OTHER: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";

struct Bench {
    service: PushService,
    keys: Arc<VapidKeys>,
    push: Push,
}

impl Bench {
    async fn start() -> Self {
        let service = PushService::open(tokio::runtime::Handle::current()).await.unwrap();
        let keys = Arc::new(VapidKeys::read(KEY).unwrap());
        let push = sender(&keys);
        Self { service, keys, push }
    }

    fn browser(&self) -> (Browser, Subscription) {
        let browser = self.service.subscribe(Some(&self.keys.current().public())).unwrap();
        let subscription = Subscription::read(&browser.endpoint, &browser.p256dh, &browser.auth).unwrap();
        (browser, subscription)
    }

    async fn send(&self, to: &Subscription, payload: &[u8]) -> Result<Taken, PushError> {
        self.push.send(to, self.keys.current().id(), &message(payload), now()).await
    }
}

fn sender(keys: &Arc<VapidKeys>) -> Push {
    let outbound = Arc::new(Outbound::new(Guard::read("loopback").unwrap()));
    Push::new(Some(Arc::clone(keys)), Some("mailto:ops@example.com".into()), outbound)
}

fn message(payload: &[u8]) -> Message<'_> {
    Message { payload, ttl: Duration::from_secs(60), urgency: Urgency::Normal, topic: None }
}

/// The push service has a clock of its own, the system's.
fn now() -> DateTime<Utc> {
    shared::clock::Clock::system().now()
}

#[tokio::test]
async fn a_browser_is_shown_what_was_sent() {
    let bench = Bench::start().await;
    let (browser, to) = bench.browser();
    let payload = json!({"title": "Fertig – ready", "body": "…", "url": "https://app.example.com/"}).to_string();
    let topic = Topic::of("digest", &to);
    let sent = Message { urgency: Urgency::High, topic: Some(&topic), ..message(payload.as_bytes()) };
    let taken = bench.push.send(&to, bench.keys.current().id(), &sent, now()).await.unwrap();
    assert_eq!(taken.status, 201);
    assert!(taken.location.is_some());
    let [shown] = bench.service.messages().try_into().unwrap();
    assert_eq!((shown.endpoint, shown.payload), (browser.endpoint, payload.into_bytes()));
    assert_eq!((shown.ttl, shown.urgency.as_str(), shown.topic.as_deref()), (60, "high", Some(topic.as_str())));
    assert_eq!(shown.contact.as_deref(), Some("mailto:ops@example.com"));
    assert_eq!(topic.as_str().len(), 32);

    for urgency in [Urgency::VeryLow, Urgency::Low, Urgency::default()] {
        bench.push.send(&to, bench.keys.current().id(), &Message { urgency, ..message(b"") }, now()).await.unwrap();
        assert_eq!(bench.service.messages().pop().unwrap().urgency, urgency.word());
    }
    // From nothing to the most, each in one body that the service takes.
    for length in [0, 1, 126, 127, 128, 3_992, seal::LONGEST_PAYLOAD] {
        let payload = vec![b'\0'; length];
        bench.send(&to, &payload).await.unwrap_or_else(|error| panic!("{length}: {error}"));
        assert_eq!(bench.service.messages().pop().unwrap().payload, payload, "{length}");
    }
    // Once for the service, however many messages.
    let tokens: std::collections::BTreeSet<_> = bench.service.messages().into_iter().map(|message| message.token).collect();
    assert_eq!(tokens.len(), 1);
}

/// The whole table: what a push service answers, what becomes of the subscription, and of the job.
#[tokio::test]
async fn each_status_has_its_verdict() {
    use Action::{Keep, KeepAndAlert, Remove};
    use FailureClass::{Limited, Permanent, Transient};
    let bench = Bench::start().await;
    let (_, to) = bench.browser();
    let status = Fault::Status;
    let busy = |status, retry_after| Fault::Busy { status, retry_after };
    for (fault, action, class, code, pause) in [
        // The service repeats the address that it was asked at, which is as good as a secret.
        (status(404), Remove, Permanent, "push_subscription_gone", None),
        (status(410), Remove, Permanent, "push_subscription_gone", None),
        (status(413), Keep, Permanent, "push_too_large", None),
        (status(429), Keep, Transient, "push_later", None),
        (busy(429, 7), Keep, Limited, "push_later", Some(7)),
        (busy(429, 999_999), Keep, Limited, "push_later", Some(86_400)),
        (status(408), Keep, Transient, "push_later", None),
        (status(500), Keep, Transient, "push_later", None),
        (status(502), Keep, Transient, "push_later", None),
        (status(503), Keep, Transient, "push_later", None),
        (busy(503, 120), Keep, Limited, "push_later", Some(120)),
        (status(401), KeepAndAlert, Limited, "push_unauthorised", Some(900)),
        (status(403), KeepAndAlert, Limited, "push_unauthorised", Some(900)),
        (status(400), KeepAndAlert, Permanent, "push_refused", None),
        (status(301), KeepAndAlert, Permanent, "push_refused", None),
        (status(307), KeepAndAlert, Permanent, "push_refused", None),
        (status(418), KeepAndAlert, Permanent, "push_refused", None),
        (Fault::Drop { after_bytes: 0 }, Keep, Transient, "push_unanswered", None),
    ] {
        bench.service.faults().add(Rule::from(fault).on("Push").times(1));
        let error = bench.send(&to, b"hello").await.unwrap_err();
        assert_eq!(error.action(), action, "{fault:?}");
        assert!(OUTCOMES.contains(&error.outcome()), "{error:?}");
        let arrived = matches!(fault, Fault::Drop { .. });
        assert_eq!(error.may_have_arrived(), arrived, "{fault:?}");
        let shown = format!("{error:?} {error}");
        assert!(!shown.contains("/push/"), "{shown}");
        let failure = Failure::from(error);
        assert_eq!((failure.class, failure.code, failure.retry_after), (class, code, pause.map(Duration::from_secs)), "{fault:?}");
    }
    assert!(bench.service.messages().is_empty());
    bench.send(&to, b"hello").await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_nobody_there_is_not() {
    let bench = Bench::start().await;
    let (_, to) = bench.browser();
    bench.service.faults().add(Rule::from(Fault::LoseAnswer).on("Push").times(1));
    let error = bench.send(&to, b"hello").await.unwrap_err();
    assert!(error.may_have_arrived() && error.action() == Action::Keep, "{error:?}");
    assert_eq!(bench.service.messages().len(), 1, "it did arrive");
    bench.service.stop();
    // A connection that was kept may still be cut; then one is made anew.
    let error = bench.send(&to, b"hello").await.unwrap_err();
    assert_eq!(error.action(), Action::Keep);
    assert_eq!(Failure::from(error).class, FailureClass::Transient);
}

#[tokio::test]
async fn what_a_service_finds_out_by_itself() {
    let bench = Bench::start().await;
    let (browser, to) = bench.browser();
    bench.service.unsubscribe(&browser);
    assert_eq!(bench.send(&to, b"hello").await.unwrap_err().action(), Action::Remove);
    let made_up = Subscription::read(&format!("{}/push/nobody", bench.service.url()), &browser.p256dh, &browser.auth).unwrap();
    assert!(matches!(bench.send(&made_up, b"hello").await.unwrap_err(), PushError::Gone { status: 404, .. }));

    // Somebody else's key: our fault, and the subscription stays.
    let (_, to) = bench.browser();
    let stranger = Arc::new(VapidKeys::read(OTHER).unwrap());
    let error = sender(&stranger).send(&to, stranger.current().id(), &message(b"hello"), now()).await.unwrap_err();
    assert_eq!((error.action(), error.outcome()), (Action::KeepAndAlert, "unauthorised"));
    // A clock that is a day behind: the same.
    let error = bench.push.send(&to, bench.keys.current().id(), &message(b"hello"), now() - chrono::TimeDelta::days(1)).await.unwrap_err();
    assert_eq!(error.action(), Action::KeepAndAlert);
    // Once it is right again, it signs anew.
    bench.send(&to, b"hello").await.unwrap();

    let error = bench.send(&to, &[0; seal::LONGEST_PAYLOAD + 1]).await.unwrap_err();
    assert_eq!((error.action(), Failure::from(error).class), (Action::Keep, FailureClass::Permanent));
}

#[tokio::test]
async fn keys_rotate_and_each_subscription_keeps_its_own() {
    let bench = Bench::start().await;
    let (_, old) = bench.browser();
    let rotated = Arc::new(VapidKeys::read(&format!("{OTHER} {KEY}")).unwrap());
    let push = sender(&rotated);
    push.send(&old, bench.keys.current().id(), &message(b"old"), now()).await.unwrap();
    let browser = bench.service.subscribe(Some(&rotated.current().public())).unwrap();
    let new = Subscription::read(&browser.endpoint, &browser.p256dh, &browser.auth).unwrap();
    push.send(&new, rotated.current().id(), &message(b"new"), now()).await.unwrap();
    assert_eq!(bench.service.messages().len(), 2);
    // The old key was dropped: the browser must subscribe anew.
    let later = Arc::new(VapidKeys::read(OTHER).unwrap());
    let error = sender(&later).send(&old, bench.keys.current().id(), &message(b"old"), now()).await.unwrap_err();
    // A setting that was overwritten looks the same, and ends no subscription.
    assert!(matches!(error, PushError::KeyGone) && error.action() == Action::KeepAndAlert);
    let failure = Failure::from(error);
    assert_eq!((failure.class, failure.code), (FailureClass::Limited, "push_key_gone"));
}

#[tokio::test]
async fn an_endpoint_that_is_not_public_is_not_called() {
    let bench = Bench::start().await;
    let (browser, to) = bench.browser();
    let push = Push::new(Some(Arc::clone(&bench.keys)), None, Arc::default());
    let https = Subscription::read(&browser.endpoint.replace("http:", "https:"), &browser.p256dh, &browser.auth).unwrap();
    for to in [to, https] {
        let error = push.send(&to, bench.keys.current().id(), &message(b"hello"), now()).await.unwrap_err();
        assert_eq!(error.action(), Action::Keep);
        assert_eq!(Failure::from(error).code, "push_not_allowed");
    }
    assert!(bench.service.faults().requests().is_empty());
    let unset = Push::new(None, None, Arc::default());
    let error = unset.send(&bench.browser().1, bench.keys.current().id(), &message(b"hello"), now()).await.unwrap_err();
    assert_eq!(error.action(), Action::KeepAndAlert);
}

/// `http-ece` unseals what arrived, and `py-vapid` takes its token.
#[tokio::test]
async fn others_unseal_and_verify_what_is_sent() {
    let bench = Bench::start().await;
    let (browser, to) = bench.browser();
    for payload in ["", "When I grow up, I want to be a watermelon", &"ü".repeat(1_900)] {
        bench.send(&to, payload.as_bytes()).await.unwrap();
        let message = bench.service.messages().pop().unwrap();
        let asked = json!({
            "body": hex::encode(&message.body),
            "private": bench.service.private_key(&browser),
            "auth": browser.auth,
            "payload": payload,
            "authorization": format!("vapid t={},k={}", message.token, message.key),
            "origin": bench.service.url(),
            "key": bench.keys.current().public(),
        });
        let script = "import base64, json, sys\n\
            import http_ece\n\
            from cryptography.hazmat.backends import default_backend\n\
            from cryptography.hazmat.primitives.asymmetric import ec\n\
            from py_vapid import Vapid02\n\
            asked = json.load(sys.stdin)\n\
            raw = lambda text: base64.urlsafe_b64decode(text + '=' * (-len(text) % 4))\n\
            private = ec.derive_private_key(int.from_bytes(raw(asked['private']), 'big'), ec.SECP256R1(), default_backend())\n\
            body = bytes.fromhex(asked['body'])\n\
            opened = http_ece.decrypt(body, private_key=private, auth_secret=raw(asked['auth']), version='aes128gcm')\n\
            assert opened.decode() == asked['payload'], opened\n\
            assert Vapid02.verify(asked['authorization']), 'the signature'\n\
            token = asked['authorization'].split('t=')[1].split(',')[0]\n\
            forged = asked['authorization'].replace(token[-20:], 'A' * 19 + 'Q')\n\
            assert forged != asked['authorization']\n\
            try:\n\
            \ttaken = Vapid02.verify(forged)\n\
            except Exception:\n\
            \ttaken = False\n\
            assert not taken, 'it takes anything'\n\
            claims = json.loads(raw(token.split('.')[1]))\n\
            assert claims['aud'] == asked['origin'] and claims['sub'] == 'mailto:ops@example.com', claims\n\
            assert asked['authorization'].endswith('k=' + asked['key'])";
        let mut python = python(&["http-ece==1.2.1", "py-vapid==1.9.6"]).unwrap();
        let mut child = python.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
