use secrecy::ExposeSecret;

use super::*;
use crate::queue::Queue;

const SECRET: &str = "hunter2";

fn complete() -> Vec<(&'static str, &'static str)> {
    vec![
        ("OFFSTAGE_DATABASE_URL", "postgres://owner:hunter2@localhost/offstage"),
        ("OFFSTAGE_API_DATABASE_URL", "postgres://api:hunter2@localhost/offstage"),
        ("OFFSTAGE_ENGINE_DATABASE_URL", "postgresql://engine:hunter2@localhost:5433/offstage"),
        ("OFFSTAGE_REDIS_URL", "redis://:hunter2@localhost:6379/1"),
        ("OFFSTAGE_S3_BUCKET", "files"),
        ("OFFSTAGE_S3_ACCESS_KEY_ID", "id"),
        ("OFFSTAGE_S3_SECRET_ACCESS_KEY", "hunter2"),
    ]
}

fn with(extra: &[(&'static str, &'static str)]) -> Variables {
    complete().into_iter().filter(|(name, _)| extra.iter().all(|(other, _)| name != other)).chain(extra.iter().copied()).collect()
}

fn problems(result: Result<impl std::fmt::Debug, ConfigError>) -> Vec<(String, String)> {
    result.unwrap_err().problems.into_iter().map(|problem| (problem.variable, problem.detail)).collect()
}

#[test]
fn defaults_are_those_of_the_manual() {
    let api = ApiConfig::read(&with(&[])).unwrap();
    assert_eq!(api.listen.address.to_string(), "127.0.0.1:8080");
    assert_eq!((api.database.pool, api.window), (20, 10_000));
    assert_eq!((api.idempotency.as_secs(), api.shutdown_grace.as_secs()), (86_400, 25));
    assert_eq!(api.redis.prefix, "offstage");
    assert_eq!(api.s3.region, "us-east-1");
    assert!(!api.s3.path_style && api.s3.endpoint.is_none() && !api.probe.enabled);
    assert_eq!((api.log.filter.as_str(), api.log.format), ("info", LogFormat::Json));
    assert_eq!(api.warnings, Vec::<String>::new());
    let worker = WorkerConfig::read(&with(&[]), None).unwrap();
    assert_eq!(worker.listen.address.to_string(), "127.0.0.1:9090");
    assert_eq!(worker.database.pool, 16);
    assert_eq!(worker.retention, Retention::days(90, 180));
    assert_eq!(worker.queues.concurrency.len(), Queue::ALL.len());
    assert!(worker.queues.concurrency.values().all(|at_once| *at_once > 0));
}

#[test]
fn all_problems_come_at_once_and_name_their_variables() {
    let variables = Variables::from_iter([
        ("OFFSTAGE_API_DATABASE_URL", "mysql://root:hunter2@localhost/x"),
        ("OFFSTAGE_REDIS_URL", "hunter2"),
        ("OFFSTAGE_LISTEN", "everywhere"),
        ("OFFSTAGE_API_POOL", "many"),
        ("OFFSTAGE_LOG", "shared=loud"),
        ("OFFSTAGE_LOG_FORMAT", "xml"),
        ("OFFSTAGE_S3_BUCKET", ""),
        ("OFFSTAGE_S3_ENDPOINT", "s3.example.com"),
        ("OFFSTAGE_S3_PATH_STYLE", "yes"),
        ("OFFSTAGE_WINDOW", "0"),
        ("OFFSTAGE_REDIS_PREFIX", "a{b}"),
        ("OFFSTAGE_PROBE", "true"),
    ]);
    let error = ApiConfig::read(&variables).unwrap_err();
    let mut names: Vec<_> = error.problems.iter().map(|problem| problem.variable.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "OFFSTAGE_API_DATABASE_URL",
            "OFFSTAGE_API_POOL",
            "OFFSTAGE_LISTEN",
            "OFFSTAGE_LOG",
            "OFFSTAGE_LOG_FORMAT",
            "OFFSTAGE_PROBE",
            "OFFSTAGE_REDIS_PREFIX",
            "OFFSTAGE_REDIS_URL",
            "OFFSTAGE_S3_ACCESS_KEY_ID",
            "OFFSTAGE_S3_BUCKET",
            "OFFSTAGE_S3_ENDPOINT",
            "OFFSTAGE_S3_PATH_STYLE",
            "OFFSTAGE_S3_SECRET_ACCESS_KEY",
            "OFFSTAGE_WINDOW",
        ]
    );
    let text = error.to_string();
    assert!(text.contains("\n  OFFSTAGE_S3_BUCKET: is empty; write for example offstage-files"), "{text}");
    assert!(text.contains("OFFSTAGE_WINDOW: `0` is not a whole number from 100 to 1000000"), "{text}");
    assert!(!text.contains(SECRET), "{text}");
}

#[test]
fn secrets_stay_out_of_debug() {
    let variables = with(&[("OFFSTAGE_S3_SESSION_TOKEN", "hunter2"), ("OFFSTAGE_SOURCE_A_URL", "postgres://r:hunter2@localhost/a")]);
    let api = ApiConfig::read(&variables).unwrap();
    let worker = WorkerConfig::read(&variables, None).unwrap();
    let owner = OwnerConfig::read(&variables).unwrap();
    assert!(worker.sources.url("OFFSTAGE_SOURCE_A_URL").unwrap().expose_secret().contains(SECRET));
    for text in [format!("{variables:?}"), format!("{api:?}"), format!("{worker:?}"), format!("{owner:?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn queues_and_their_concurrency() {
    let variables = with(&[("OFFSTAGE_QUEUES", "exports, email"), ("OFFSTAGE_CONCURRENCY", "email=5, exports = 1,push=9")]);
    let worker = WorkerConfig::read(&variables, None).unwrap();
    assert_eq!(worker.queues.concurrency.into_iter().collect::<Vec<_>>(), {
        let mut expected = [(Queue::Exports, 1), (Queue::Email, 5)];
        expected.sort();
        expected.to_vec()
    });
    assert_eq!(worker.warnings, ["OFFSTAGE_CONCURRENCY has no effect on `push`: this worker doesn't serve it"]);
    // The command line goes before the variable.
    let worker = WorkerConfig::read(&variables, Some("push")).unwrap();
    assert_eq!(worker.queues.concurrency.into_iter().collect::<Vec<_>>(), [(Queue::Push, 9)]);
    let wrong = problems(WorkerConfig::read(&with(&[("OFFSTAGE_CONCURRENCY", "mail=3,email=0,push")]), Some("exprots")));
    let names: Vec<_> = wrong.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["--queues", "--queues", "OFFSTAGE_CONCURRENCY", "OFFSTAGE_CONCURRENCY", "OFFSTAGE_CONCURRENCY"]);
    assert!(wrong[0].1.starts_with("there is no queue `exprots`; there are "), "{wrong:?}");
}

#[test]
fn s3_compatible_servers() {
    let api = ApiConfig::read(&with(&[
        ("OFFSTAGE_S3_ENDPOINT", " http://127.0.0.1:9000 "),
        ("OFFSTAGE_S3_PUBLIC_ENDPOINT", "https://files.example.com"),
    ]))
    .unwrap();
    assert!(api.s3.path_style, "the default with an endpoint");
    assert_eq!(api.s3.public_endpoint.unwrap().as_str(), "https://files.example.com/");
    let api = ApiConfig::read(&with(&[("OFFSTAGE_S3_PUBLIC_ENDPOINT", "https://files.example.com")])).unwrap();
    assert_eq!(api.warnings.len(), 1, "{:?}", api.warnings);
    let wrong = problems(ApiConfig::read(&with(&[("OFFSTAGE_S3_ENDPOINT", "https://user:hunter2@s3.example.com")])));
    assert_eq!(wrong[0].0, "OFFSTAGE_S3_ENDPOINT");
    assert!(!wrong[0].1.contains(SECRET));
}

#[test]
fn typing_mistakes_and_contradictions_are_warned_of() {
    let variables = with(&[
        ("OFFSTAGE_REDIS_PREFIXX", "a"),
        ("OFFSTAGE_TOTALLY_DIFFERENT_THING", "a"),
        ("OFFSTAGE_URL", "http://localhost:8080"),
        ("OFFSTAGE_KEY", "pk_x"),
        ("OFFSTAGE_SOURCE_MAIN_URL", "postgres://reader@localhost/a"),
        ("OFFSTAGE_PROBE_CALLBACKS", "loopback"),
        ("OFFSTAGE_API_DATABASE_URL", "postgres://owner:hunter2@localhost/offstage"),
    ]);
    let warnings = ApiConfig::read(&variables).unwrap().warnings;
    assert_eq!(warnings.len(), 4, "{warnings:#?}");
    assert_eq!(warnings[0], "OFFSTAGE_REDIS_PREFIXX is not a setting and has no effect; did you mean OFFSTAGE_REDIS_PREFIX?");
    assert_eq!(warnings[1], "OFFSTAGE_TOTALLY_DIFFERENT_THING is not a setting and has no effect");
    assert!(warnings[2].starts_with("OFFSTAGE_PROBE_CALLBACKS"));
    assert!(warnings[3].starts_with("OFFSTAGE_API_DATABASE_URL equals OFFSTAGE_DATABASE_URL"));
    assert!(!warnings.join(" ").contains(SECRET));
}

#[test]
fn sources_must_be_postgres() {
    let wrong = problems(WorkerConfig::read(&with(&[("OFFSTAGE_SOURCE_A_URL", "http://hunter2")]), None));
    assert_eq!(wrong.len(), 1);
    assert_eq!(wrong[0].0, "OFFSTAGE_SOURCE_A_URL");
    assert!(!wrong[0].1.contains(SECRET));
}

#[test]
fn the_owner_needs_one_url_only() {
    let owner = OwnerConfig::read(&Variables::from_iter([("OFFSTAGE_DATABASE_URL", "postgres://owner@localhost/offstage")])).unwrap();
    assert_eq!(owner.database.pool, 2);
    assert_eq!(problems(OwnerConfig::read(&Variables::default()))[0].0, "OFFSTAGE_DATABASE_URL");
}

#[test]
fn a_clock_file_is_for_tests_and_warned_of() {
    let wrong = problems(WorkerConfig::read(&with(&[("OFFSTAGE_CLOCK_FILE", "/nowhere/clock")]), None));
    assert_eq!((wrong.len(), wrong[0].0.as_str()), (1, "OFFSTAGE_CLOCK_FILE"));
    let path = std::env::temp_dir().join(format!("offstage-clock-setting-{}", std::process::id()));
    std::fs::write(&path, "2025-03-30T01:00:00Z").unwrap();
    let name: &'static str = path.display().to_string().leak();
    let config = ApiConfig::read(&with(&[("OFFSTAGE_CLOCK_FILE", name)])).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(config.clock.now().to_rfc3339(), "2025-03-30T01:00:00+00:00");
    assert!(config.warnings.iter().any(|warning| warning.starts_with("OFFSTAGE_CLOCK_FILE") && warning.contains("for tests only")));
}

#[test]
fn mails_are_redirected_to_one_plain_address() {
    for wrong in ["staging", "Ops <ops@example.com>", "a@b.example, c@b.example", "a b@example.com", "a@[127.0.0.1]", "a@"] {
        let found = problems(WorkerConfig::read(&with(&[("OFFSTAGE_MAIL_REDIRECT", wrong)]), None));
        assert_eq!((found.len(), found[0].0.as_str()), (1, "OFFSTAGE_MAIL_REDIRECT"), "{wrong}");
    }
    let worker = WorkerConfig::read(&with(&[("OFFSTAGE_MAIL_REDIRECT", "staging+1@example.com")]), None).unwrap();
    assert_eq!(worker.mail.redirect.as_deref(), Some("staging+1@example.com"));
}

#[test]
fn recipients_and_hooks_have_keys_that_are_read_to_the_letter() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let variables = with(&[("OFFSTAGE_RECIPIENT_KEY", key), ("OFFSTAGE_HOOK_MAIN", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]);
    let (api, worker) = (ApiConfig::read(&variables).unwrap(), WorkerConfig::read(&variables, None).unwrap());
    let of = |key: Option<RecipientKey>| key.and_then(|key| key.hash(1, "ada@example.com"));
    let (apis, workers) = (of(api.recipient_key.clone()), of(worker.mail.recipient_key.clone()));
    assert!(apis.is_some() && apis == workers, "both know the same recipients");
    assert!(api.hook_keys.contains_key("OFFSTAGE_HOOK_MAIN") && api.warnings.iter().all(|warning| !warning.contains("OFFSTAGE_HOOK")));
    for (name, wrong) in [("OFFSTAGE_RECIPIENT_KEY", "short"), ("OFFSTAGE_HOOK_MAIN", "whsec_hunter2")] {
        let found = problems(ApiConfig::read(&with(&[(name, wrong)])));
        assert_eq!((found.len(), found[0].0.as_str()), (1, name));
        assert!(!found[0].1.contains(wrong), "{found:?}");
    }
    let worker = WorkerConfig::read(&with(&[("OFFSTAGE_SMTP_URL", "smtps://mail.example.com")]), None).unwrap();
    assert!(worker.warnings.iter().any(|warning| warning.contains("OFFSTAGE_RECIPIENT_KEY")), "{:?}", worker.warnings);
}
