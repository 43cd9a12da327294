//! Telling a running `sandbox run` to misbehave: a small HTTP interface on 127.0.0.1, its address in `demo.env` as
//! `OFFSTAGE_CONTROL_URL`.
//!
//! | request | effect |
//! |---|---|
//! | `GET /` | what runs: name, process id, address, starts |
//! | `POST /NAME/VERB` | `kill9`, `stop`, `start`, `pause` or `resume` for `api-1`, `worker-1`, `postgres`, `redis`, `s3`, `mail`, `push`, `vendors` |
//! | `GET /s3/requests` | what S3 was asked, latest last |
//! | `GET /s3/objects`, `GET /s3/uploads` | the bucket's objects; uploads that were begun and not finished |
//! | `GET /s3/faults`, `/mail/faults`, `/push/faults`, `/vendors/faults` | the rules that hold |
//! | `POST` to them | adds one, as `{"fault": {"status": 503}, "operation": "UploadPart", "times": 3}` |
//! | `DELETE` of them | everything works again |
//!
//! Faults: `{"status": 503}`, `"hang"`, `{"drop": {"after_bytes": 1000}}`, `{"slow": {"bytes_per_second": 10000}}`,
//! `"lose_answer"`, `{"busy": {"status": 429, "retry_after": 60}}`, and for mail `{"reply": {"code": 550, "enhanced": [5, 1, 1]}}`; beside `fault` a rule may have `operation`, `path_contains`, `skip` and `times`.
//!
//! Who may connect to this machine's loopback may use it, as they could kill the processes. Web pages may not: a request
//! with an `Origin`, or for another host name than this address, is refused.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::Local;
use crate::error::{Doing, Error, Result};
use crate::faults::{Faults, Rule};
use crate::http::comes_from_here;
use crate::ports::Port;
use crate::process::Process;
use crate::services::s3::S3;

impl Local {
    /// Serves the interface until the installation ends, and writes its address into `demo.env`.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn serve_control(self: &Arc<Self>) -> Result<()> {
        let port = Port::reserve()?;
        let address = port.address();
        let listener = tokio::net::TcpListener::bind(address).await.doing(|| format!("listen on {address}"))?;
        let hosts = [address.to_string(), format!("localhost:{}", address.port())];
        let router = Router::new()
            .route("/", get(overview))
            .route("/s3/requests", get(requests))
            .route("/s3/objects", get(objects))
            .route("/s3/uploads", get(uploads))
            .route("/{name}/faults", get(faults).post(add_fault).delete(clear_faults))
            .route("/{name}/{verb}", post(command))
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                let ours = comes_from_here(request.headers(), &hosts);
                async move { if ours { next.run(request).await } else { StatusCode::FORBIDDEN.into_response() } }
            }))
            // Weak: the server must not keep alive what it is to end with.
            .with_state(Arc::downgrade(self));
        tokio::spawn(async move {
            let _port = port;
            // It ends with the process; an error of accept is retried inside.
            let _ = axum::serve(listener, router).await;
        });
        self.demo.add("OFFSTAGE_MAIL_PAGE_URL", &self.services.mail.page())?;
        self.demo.add("OFFSTAGE_PUSH_SERVICE_URL", &self.services.push.url())?;
        self.demo.add("OFFSTAGE_VENDORS_URL", &self.services.vendors.url())?;
        self.demo.add("OFFSTAGE_MODELS_URL", &self.services.ai.url())?;
        self.demo.add("OFFSTAGE_MODELS_KEY", self.services.ai.key())?;
        self.demo.add("OFFSTAGE_CONTROL_URL", &format!("http://{address}"))
    }

    fn process(&self, name: &str) -> Option<Process> {
        self.processes().into_iter().find(|process| process.name() == name)
    }
}

type Shared = State<std::sync::Weak<Local>>;

async fn overview(State(local): Shared) -> Response {
    let Some(local) = local.upgrade() else {
        return stopping();
    };
    let processes: Vec<_> = local
        .processes()
        .iter()
        .map(|process| {
            let address = process.address().map(|address| address.to_string());
            json!({"name": process.name(), "pid": process.pid(), "address": address, "starts": process.starts(), "log": process.log_path()})
        })
        .collect();
    Json(json!({"processes": processes, "s3": local.services.s3.as_ref().map(S3::endpoint), "mail": local.services.mail.page(), "push": local.services.push.url(), "vendors": local.services.vendors.url(), "models": local.services.ai.url()})).into_response()
}

async fn command(State(local): Shared, Path((name, verb)): Path<(String, String)>) -> Response {
    let Some(local) = local.upgrade() else {
        return stopping();
    };
    let (mail, push, vendors) = (&local.services.mail, &local.services.push, &local.services.vendors);
    let done = match (name.as_str(), local.services.s3.as_ref(), local.process(&name)) {
        ("s3", Some(s3), _) => match in_process(&verb, || s3.kill9(), || s3.pause(), || s3.resume(), s3.start()).await {
            Some(done) => done,
            None => return unknown_verb(&verb),
        },
        ("mail", ..) => match in_process(&verb, || mail.kill9(), || mail.pause(), || mail.resume(), mail.start()).await {
            Some(done) => done,
            None => return unknown_verb(&verb),
        },
        ("push", ..) => match in_process(&verb, || push.kill9(), || push.pause(), || push.resume(), push.start()).await {
            Some(done) => done,
            None => return unknown_verb(&verb),
        },
        ("vendors", ..) => match in_process(&verb, || vendors.kill9(), || vendors.pause(), || vendors.resume(), vendors.start()).await {
            Some(done) => done,
            None => return unknown_verb(&verb),
        },
        (_, _, Some(process)) => match verb.as_str() {
            "kill9" => process.kill9().await.map(drop),
            "stop" => process.stop().await.map(drop),
            "pause" => process.pause().await.map(drop),
            "resume" => process.resume().await.map(drop),
            "start" => process.start().await,
            _ => return unknown_verb(&verb),
        },
        _ => return unknown(&format!("{name}: GET / lists what runs")),
    };
    answer(done.map(|()| json!({"name": name, "done": verb, "pid": local.process(&name).and_then(|process| process.pid())})))
}

async fn requests(State(local): Shared) -> Response {
    with_s3(&local, |s3| Ok(json!(s3.faults().requests())))
}

async fn objects(State(local): Shared) -> Response {
    with_s3(&local, |s3| s3.objects().map(|objects| json!(objects)))
}

async fn uploads(State(local): Shared) -> Response {
    with_s3(&local, |s3| s3.unfinished_uploads().map(|uploads| json!(uploads)))
}

async fn faults(State(local): Shared, Path(name): Path<String>) -> Response {
    with_faults(&local, &name, |_| ())
}

async fn add_fault(State(local): Shared, Path(name): Path<String>, Json(rule): Json<Rule>) -> Response {
    with_faults(&local, &name, |faults| faults.add(rule))
}

async fn clear_faults(State(local): Shared, Path(name): Path<String>) -> Response {
    with_faults(&local, &name, Faults::clear)
}

/// Does something to a service's rules, and answers those that hold then.
fn with_faults(local: &std::sync::Weak<Local>, name: &str, act: impl FnOnce(&Faults)) -> Response {
    let Some(local) = local.upgrade() else {
        return stopping();
    };
    let faults = match name {
        "s3" => local.services.s3.as_ref().map(S3::faults),
        "mail" => Some(local.services.mail.faults()),
        "push" => Some(local.services.push.faults()),
        "vendors" => Some(local.services.vendors.faults()),
        _ => None,
    };
    match faults {
        Some(faults) => {
            act(faults);
            Json(json!(faults.rules())).into_response()
        }
        None => unknown(&format!("{name} of ours that has faults: s3, mail, push and vendors have")),
    }
}

/// A verb for a server inside this process; `None` for one that is no verb.
async fn in_process(
    verb: &str,
    kill: impl FnOnce(),
    pause: impl FnOnce(),
    resume: impl FnOnce(),
    start: impl Future<Output = Result<()>>,
) -> Option<Result<()>> {
    match verb {
        "kill9" | "stop" => kill(),
        "pause" => pause(),
        "resume" => resume(),
        "start" => return Some(start.await),
        _ => return None,
    }
    Some(Ok(()))
}

fn with_s3(local: &std::sync::Weak<Local>, act: impl FnOnce(&S3) -> Result<serde_json::Value>) -> Response {
    let Some(local) = local.upgrade() else {
        return stopping();
    };
    match &local.services.s3 {
        Some(s3) => answer(act(s3)),
        None => unknown("an S3 of ours: OFFSTAGE_S3_BUCKET names another"),
    }
}

fn answer(result: Result<serde_json::Value>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error.to_string()}))).into_response(),
    }
}

fn unknown(what: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error": format!("there is no {what}")}))).into_response()
}

fn unknown_verb(verb: &str) -> Response {
    unknown(&format!("the verb {verb}: kill9, stop, start, pause, resume"))
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": Error::Stopping.to_string()}))).into_response()
}
