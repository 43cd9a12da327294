//! Against the sandbox's mail server, told to misbehave at each stage.

mod judged;

use std::collections::BTreeSet;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sandbox::{Fault, Rule, services::mail::MailServer};
use shared::{
    config::{self, Variables},
    job::{Failure, FailureClass},
    mail::SmtpServer,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use super::*;

const SERVER: &str = "OFFSTAGE_SMTP_URL";

struct Bench {
    server: MailServer,
    config: config::Mail,
}

impl Bench {
    /// With STARTTLS and a password.
    async fn start() -> Self {
        let server = MailServer::alone(tokio::runtime::Handle::current()).await.unwrap();
        let config = config_of(&server.url(), Some(server.certificate()));
        Self { server, config }
    }

    fn mailer(&self) -> Mailer {
        Mailer::new(&self.config)
    }

    async fn send(&self, mailer: &Mailer) -> Result<Accepted, MailError> {
        mailer.send(SERVER, &mailer.compose(&mail("mail-1")).unwrap()).await
    }
}

fn config_of(url: &str, authorities: Option<&str>) -> config::Mail {
    config::Mail {
        servers: BTreeMap::from([(SERVER.to_owned(), SmtpServer::read(url).unwrap())]),
        authorities: authorities.map(str::to_owned),
        ..config::Mail::default()
    }
}

fn mail(id: &str) -> Mail<'_> {
    Mail {
        id,
        from: Party { name: Some("Acme"), address: "no-reply@acme.example" },
        to: Party { name: None, address: "ada@example.com" },
        reply_to: None,
        subject: "Your export is ready",
        text: "It is ready.\n.\n..and this line begins with dots\n",
        html: None,
        date: "2026-11-20T12:00:00Z".parse().unwrap(),
        unsubscribe: None,
        headers: const { &BTreeMap::new() },
        dkim: None,
    }
}

#[tokio::test]
async fn a_mail_arrives_over_each_sort_of_connection() {
    let bench = Bench::start().await;
    let authorities = Some(bench.server.certificate());
    for (url, tls, user) in [
        (bench.server.url(), true, Some("offstage")),
        (bench.server.tls_url(), true, Some("offstage")),
        (bench.server.plain_url(), false, None),
    ] {
        let mailer = Mailer::new(&config_of(&url, authorities));
        let accepted = mailer.send(SERVER, &mailer.compose(&mail("mail-1")).unwrap()).await.unwrap();
        assert_eq!((accepted.code, accepted.text.as_str()), (250, "2.0.0 taken"));
        let mail = bench.server.mails().pop().unwrap();
        assert_eq!((mail.from.as_str(), mail.to.as_slice()), ("no-reply@acme.example", ["ada@example.com".to_owned()].as_slice()));
        assert_eq!((mail.tls, mail.user.as_deref()), (tls, user));
        let text = String::from_utf8(mail.bytes).unwrap();
        assert!(text.contains("Message-ID: <mail-1@acme.example>\r\n"), "{text}");
        assert!(text.contains("\r\n\r\nIt is ready.\r\n.\r\n..and this line begins with dots\r\n"), "{text}");
    }
}

/// The whole table: a stage, what goes wrong at it, the verdict.
#[tokio::test]
async fn each_stage_and_failure_has_its_verdict() {
    use Verdict::{Fail, PauseSender, Retry, Suppress, Unknown};
    let bench = Bench::start().await;
    let short = Duration::from_millis(200);
    let long = Duration::from_secs(60);
    let stages = [
        ("greeting", Stage::Greeting),
        ("EHLO", Stage::Ehlo),
        ("STARTTLS", Stage::StartTls),
        ("AUTH", Stage::Auth),
        ("MAIL", Stage::Mail),
        ("RCPT", Stage::Rcpt),
        ("DATA", Stage::Data),
        ("message", Stage::Message),
    ];
    let reply = |code, enhanced| Fault::Reply { code, enhanced };
    // By stage, in the order above.
    let table = [
        (Fault::Status(451), [Retry; 8]),
        (reply(451, [4, 7, 1]), [Retry; 8]),
        (Fault::Status(421), [Retry; 8]),
        (reply(421, [4, 3, 2]), [Retry; 8]),
        (Fault::Drop { after_bytes: 0 }, [Retry, Retry, Retry, Retry, Retry, Retry, Retry, Unknown]),
        (Fault::LoseAnswer, [Retry, Retry, Retry, Retry, Retry, Retry, Retry, Unknown]),
        (Fault::Hang, [Retry, Retry, Retry, Retry, Retry, Retry, Retry, Unknown]),
        (Fault::Status(550), [PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, Suppress, Fail, Fail]),
        (reply(550, [5, 1, 1]), [PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, Suppress, Fail, Fail]),
        (reply(552, [5, 2, 2]), [PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, Fail, Fail, Fail]),
        (Fault::Status(554), [PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, Fail, Fail, Fail]),
        (reply(550, [5, 7, 1]), [PauseSender; 8]),
        (reply(535, [5, 7, 8]), [PauseSender; 8]),
        (Fault::Status(530), [PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, PauseSender, PauseSender]),
    ];
    for (fault, verdicts) in table {
        for ((operation, stage), verdict) in stages.into_iter().zip(verdicts) {
            bench.server.faults().add(Rule::from(fault).on(operation).times(1));
            let within = |of: Stage| if fault == Fault::Hang && of == stage { short } else { long };
            let deadlines = Deadlines {
                connect: long,
                greeting: within(Stage::Greeting),
                ehlo: within(Stage::Ehlo),
                starttls: within(Stage::StartTls),
                auth: within(Stage::Auth),
                command: within(if matches!(stage, Stage::Mail | Stage::Rcpt | Stage::Data) { stage } else { Stage::Connect }),
                message: within(Stage::Message),
            };
            let mailer = Mailer::with(&bench.config, deadlines, PoolLimits::DEFAULT);
            let before = bench.server.mails().len();
            let error = bench.send(&mailer).await.expect_err(operation);
            let MailError::At { stage: failed, trouble, .. } = &error else { panic!("{error}") };
            assert_eq!((*failed, error.verdict()), (stage, verdict), "{operation} {fault:?}: {error}");
            assert_eq!(matches!(trouble, Trouble::Late(_)), fault == Fault::Hang, "{operation}: {error}");
            // What is called unknown can be either.
            let arrived = bench.server.mails().len() - before;
            assert_eq!(arrived, usize::from(operation == "message" && fault == Fault::LoseAnswer), "{operation} {fault:?}");
            assert_eq!(bench.server.faults().rules(), [], "{operation}: used up");
            assert!(OUTCOMES.contains(&verdict.word()));
            let class = match verdict {
                Retry | Unknown => FailureClass::Transient,
                Suppress | Fail => FailureClass::Permanent,
                PauseSender => FailureClass::Limited,
            };
            assert_eq!(Failure::from(error).class, class);
            bench.server.faults().clear();
        }
    }
    bench.send(&bench.mailer()).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_the_server_or_the_settings_blames_no_recipient() {
    let bench = Bench::start().await;
    let authorities = Some(bench.server.certificate());
    let url = bench.server.url();
    let verdict = async |url: &str, authorities| {
        let mailer = Mailer::new(&config_of(url, authorities));
        let error = mailer.send(SERVER, &mailer.compose(&mail("mail-1")).unwrap()).await.unwrap_err();
        let MailError::At { stage, .. } = &error else { panic!("{error}") };
        (*stage, error.verdict())
    };
    // A wrong password, a certificate that nobody signed or of another name.
    let wrong = format!("smtp://offstage:wrong@{}", url.rsplit_once('@').unwrap().1);
    assert_eq!(verdict(&wrong, authorities).await, (Stage::Auth, Verdict::PauseSender));
    assert_eq!(verdict(&url, None).await, (Stage::StartTls, Verdict::PauseSender));
    assert_eq!(verdict(&bench.server.tls_url(), None).await, (Stage::Connect, Verdict::PauseSender));
    // In the clear where TLS is meant to be, and the other way round.
    let plain = bench.server.plain_url().replace("smtp:", "smtps:").replace("?tls=none", "").replace("127.0.0.1", "localhost");
    assert_eq!(verdict(&plain, authorities).await.0, Stage::Connect);
    // Nobody there.
    assert_eq!(verdict("smtp://127.0.0.1:1?tls=none", None).await, (Stage::Connect, Verdict::Retry));
    assert_eq!(verdict("smtp://nowhere.invalid?tls=none", None).await, (Stage::Connect, Verdict::Retry));
    let unset = Mailer::new(&config::Mail::default());
    let error = unset.send(SERVER, &unset.compose(&mail("mail-1")).unwrap()).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::PauseSender);
    assert!(error.to_string().contains(SERVER));
    assert!(bench.server.mails().is_empty());
}

/// A server of a few fixed words, one line for each that is said to it.
async fn speaking(lines: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut reader = tokio::io::BufReader::new(reader);
                for line in lines {
                    let _ = writer.write_all(line.as_bytes()).await;
                    let mut said = String::new();
                    let _ = tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut said).await;
                }
            });
        }
    });
    format!("127.0.0.1:{port}")
}

#[tokio::test]
async fn hostile_servers_are_bounded_and_not_believed() {
    let failed = async |url: String| {
        let mailer = Mailer::new(&config_of(&url, None));
        match mailer.send(SERVER, &mailer.compose(&mail("mail-1")).unwrap()).await {
            Err(MailError::At { stage, trouble, .. }) => (stage, trouble),
            other => panic!("{url}: {other:?}"),
        }
    };
    // A greeting without end, in one line and in many.
    let endless: &'static str = Box::leak("a".repeat(1 << 20).into_boxed_str());
    assert_eq!(failed(format!("smtp://{}?tls=none", speaking(Box::leak(Box::new([endless]))).await)).await.0, Stage::Greeting);
    let endless: &'static str = Box::leak("220-hello\r\n".repeat(1 << 17).into_boxed_str());
    assert_eq!(failed(format!("smtp://{}?tls=none", speaking(Box::leak(Box::new([endless]))).await)).await.0, Stage::Greeting);
    // Not SMTP at all.
    let address = speaking(&["HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    assert!(matches!(failed(format!("smtp://{address}?tls=none")).await, (Stage::Greeting, Trouble::Cut(_))));
    // STARTTLS stripped from the offer: nothing is sent in the clear.
    let address = speaking(&["220 hi\r\n", "250 hi\r\n"]).await;
    assert!(matches!(failed(format!("smtp://{address}")).await, (Stage::StartTls, Trouble::Unsupported(_))));
    // An answer slipped in behind STARTTLS' own, to be taken for one under TLS.
    let address = speaking(&["220 hi\r\n", "250-hi\r\n250 STARTTLS\r\n", "220 go on\r\n250 AUTH PLAIN\r\n", "250 2.0.0 taken\r\n"]).await;
    assert_eq!(failed(format!("smtp://user:password@{address}")).await.0, Stage::StartTls);
    // Answers of the wrong sort.
    let address = speaking(&["220 hi\r\n", "250 hi\r\n", "354 go on\r\n"]).await;
    assert_eq!(failed(format!("smtp://{address}?tls=none")).await.0, Stage::Mail);
    let address = speaking(&["220 hi\r\n", "250 hi\r\n", "250 yes\r\n", "550 <ada@example.com>: no such user here\r\n"]).await;
    let (stage, Trouble::Reply { text, .. }) = failed(format!("smtp://{address}?tls=none")).await else { panic!() };
    assert_eq!((stage, text.as_str()), (Stage::Rcpt, "… no such user here"), "an address is somebody's data");
}

#[tokio::test]
async fn connections_are_kept_and_made_anew() {
    let bench = Bench::start().await;
    let connections = || bench.server.mails().iter().map(|mail| mail.connection).collect::<Vec<_>>();
    let limits = PoolLimits { connections: 2, mails: 3, ..PoolLimits::DEFAULT };
    let mailer = Mailer::with(&bench.config, Deadlines::DEFAULT, limits);
    for _ in 0..4 {
        bench.send(&mailer).await.unwrap();
    }
    assert_eq!(connections(), [1, 1, 1, 2], "three mails a connection");

    // A refusal half way is forgotten, and the next mail takes the same connection.
    bench.server.faults().add(Rule::from(Fault::Status(550)).on("RCPT").times(1));
    bench.send(&mailer).await.unwrap_err();
    bench.send(&mailer).await.unwrap();
    assert_eq!(connections().last(), Some(&2));
    assert_eq!(bench.server.faults().count("RSET"), 1);

    // The server had closed it, or says that it does: nobody notices.
    for fault in [Fault::Drop { after_bytes: 0 }, Fault::Status(421)] {
        bench.send(&mailer).await.unwrap();
        let before = connections().last().copied();
        bench.server.faults().add(Rule::from(fault).on("MAIL").times(1));
        bench.send(&mailer).await.unwrap();
        assert!(connections().last().copied() > before, "{fault:?}");
    }
    bench.server.kill9();
    assert_eq!(bench.send(&mailer).await.unwrap_err().verdict(), Verdict::Retry);
    bench.server.start().await.unwrap();
    bench.send(&mailer).await.unwrap();

    // No more at a time than is allowed.
    bench.server.forget();
    let narrow = Mailer::with(&bench.config, Deadlines::DEFAULT, PoolLimits { mails: 100, ..limits });
    let many = futures_util::future::join_all((0..20).map(|_| bench.send(&narrow))).await;
    assert!(many.iter().all(Result::is_ok), "{many:?}");
    assert!((1..=2).contains(&connections().into_iter().collect::<BTreeSet<_>>().len()), "{:?}", connections());
    let idle = Mailer::with(&bench.config, Deadlines::DEFAULT, PoolLimits { idle: Duration::ZERO, ..limits });
    bench.server.forget();
    bench.send(&idle).await.unwrap();
    bench.send(&idle).await.unwrap();
    let used = connections();
    assert_ne!(used.first(), used.last(), "one that idled too long is not used");
}

#[tokio::test]
async fn an_unknown_one_is_sent_again_under_the_same_id() {
    let bench = Bench::start().await;
    let mailer = bench.mailer();
    bench.server.faults().add(Rule::from(Fault::LoseAnswer).on("message").times(1));
    assert_eq!(bench.send(&mailer).await.unwrap_err().verdict(), Verdict::Unknown);
    bench.send(&mailer).await.unwrap();
    let [first, second] = bench.server.mails().try_into().unwrap();
    assert_eq!(first.bytes, second.bytes, "to the byte");
    let id = mailer.compose(&mail("mail-1")).unwrap().message_id().to_owned();
    assert!(String::from_utf8(first.bytes).unwrap().contains(&format!("\r\nMessage-ID: {id}\r\n")));
    // A kind's timeout must be above it: minutes, not hours.
    assert!((Duration::from_secs(120)..Duration::from_secs(600)).contains(&Deadlines::DEFAULT.total()));
}

#[tokio::test]
async fn a_staging_installation_sends_to_one_address_only() {
    let bench = Bench::start().await;
    let mailer = Mailer::new(&config::Mail { redirect: Some("staging@acme.example".into()), ..bench.config.clone() });
    bench.send(&mailer).await.unwrap();
    let mail = bench.server.mails().pop().unwrap();
    assert_eq!(mail.to, ["staging@acme.example"]);
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(text.contains("\r\nTo: staging@acme.example\r\n") && text.contains("\r\nX-Original-To: ada@example.com\r\n"), "{text}");
}

#[test]
fn settings_are_read_and_secrets_kept() {
    let read = |pairs: &[(&str, &str)]| {
        let mut all = vec![
            ("OFFSTAGE_ENGINE_DATABASE_URL", "postgres://a:b@localhost/c"),
            ("OFFSTAGE_REDIS_URL", "redis://localhost"),
            ("OFFSTAGE_S3_BUCKET", "bucket"),
            ("OFFSTAGE_S3_ACCESS_KEY_ID", "id"),
            ("OFFSTAGE_S3_SECRET_ACCESS_KEY", "secret"),
        ];
        all.extend_from_slice(pairs);
        config::WorkerConfig::read(&Variables::from_iter(all), None)
    };
    let key = BASE64_STANDARD.encode(AsDer::<Pkcs8V1Der<'_>>::as_der(&KeyPair::generate(KeySize::Rsa2048).unwrap()).unwrap().as_ref());
    let config = read(&[("OFFSTAGE_SMTP_ACME", "smtp://user:hush@mail.example.com"), ("OFFSTAGE_DKIM_ACME", &key)]).unwrap();
    assert_eq!(config.mail.servers["OFFSTAGE_SMTP_ACME"].host, "mail.example.com");
    assert_eq!(config.mail.dkim["OFFSTAGE_DKIM_ACME"].algorithm(), "rsa-sha256");
    let shown = format!("{config:?}");
    assert!(!shown.contains("hush") && !shown.contains(&key[..20]));
    assert!(!config.warnings.iter().any(|warning| warning.contains("ACME")), "{:?}", config.warnings);
    for (name, value) in [
        ("OFFSTAGE_SMTP_ACME", "mail.example.com"),
        ("OFFSTAGE_DKIM_ACME", "hush"),
        ("OFFSTAGE_MAIL_REDIRECT", "nobody"),
        ("OFFSTAGE_MAIL_HELLO", "a b"),
        ("OFFSTAGE_MAIL_CA_FILE", "/nowhere"),
        ("OFFSTAGE_PUSH_KEYS", "hush"),
        ("OFFSTAGE_PUSH_CONTACT", "mailto:nobody@localhost"),
        ("OFFSTAGE_OUTBOUND_ALLOW", "everything"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert_eq!(error.problems.iter().map(|problem| problem.variable.as_str()).collect::<Vec<_>>(), [name]);
        assert!(!error.to_string().contains("hush"));
    }
}
