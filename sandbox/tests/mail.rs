//! The mail server as somebody else's client meets it (Python's `smtplib`), well and badly behaved, and its page.

use std::time::Duration;

use sandbox::judges::python;
use sandbox::services::mail::MailServer;
use sandbox::{Fault, Rule};
use serde_json::{Value, json};

/// Sends one mail over STARTTLS with a password; prints the reply of whoever refuses, and after which command.
const SEND: &str = "import smtplib, ssl, sys\n\
    port, password, certificate = sys.argv[1:]\n\
    client = smtplib.SMTP('localhost', int(port), timeout=20)\n\
    try:\n\
    \tclient.starttls(context=ssl.create_default_context(cadata=certificate))\n\
    \tclient.login('offstage', password)\n\
    \tmail = 'From: a@example.com\\r\\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe_<b>?=\\r\\nContent-Type: text/html\\r\\n\\r\\n<script>alert(1)</script>\\r\\n.\\r\\nend'\n\
    \tclient.sendmail('a@example.com', ['b@example.com', 'c@example.com'], mail)\n\
    \tclient.quit()\n\
    except smtplib.SMTPException as error:\n\
    \tprint(type(error).__name__, end='')";

fn send(server: &MailServer) -> String {
    let url = server.url();
    let (_, rest) = url.split_once("offstage:").unwrap();
    let (password, address) = rest.split_once('@').unwrap();
    let port = address.rsplit(':').next().unwrap();
    let output = python(&[]).unwrap().args(["-c", SEND, port, password, server.certificate()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// By somebody else's HTTP client too.
fn get(url: &str, header: &str) -> (u16, String) {
    let script = "import sys, urllib.request, urllib.error\n\
        url, header = sys.argv[1:]\n\
        request = urllib.request.Request(url, headers=dict([header.split(': ')]) if header else {})\n\
        try:\n\
        \tanswer = urllib.request.urlopen(request, timeout=20)\n\
        except urllib.error.HTTPError as error:\n\
        \tanswer = error\n\
        sys.stdout.write(str(answer.status) + ' ' + answer.read().decode())";
    let output = python(&[]).unwrap().args(["-c", script, url, header]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let (status, body) = said.split_once(' ').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_is_shown_and_harms_nobody() {
    let server = MailServer::alone(tokio::runtime::Handle::current()).await.unwrap();
    assert_eq!(send(&server), "");
    let [mail] = server.wait_for(Duration::from_secs(10), 1).await.unwrap().try_into().unwrap();
    assert_eq!(
        (mail.from.as_str(), mail.to.as_slice()),
        ("a@example.com", ["b@example.com".to_owned(), "c@example.com".to_owned()].as_slice())
    );
    assert!(mail.tls && mail.user.as_deref() == Some("offstage"));
    assert!(mail.bytes.ends_with(b"\r\n.\r\nend\r\n"), "{}", String::from_utf8_lossy(&mail.bytes));

    let page = server.page();
    let (status, listed) = get(&page, "");
    assert!(status == 200 && listed.contains("Grüße &lt;b&gt;") && !listed.contains("Grüße <b>"), "{listed}");
    let (status, one) = get(&format!("{page}mails/1"), "");
    assert!(status == 200 && one.contains("&lt;script&gt;alert(1)") && !one.contains("<script>"), "{one}");
    let (_, all) = get(&format!("{page}mails"), "");
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!((&all[0]["subject"], &all[0]["to"][1]), (&json!("Grüße <b>"), &json!("c@example.com")), "{all}");
    assert!(get(&format!("{page}mails/1/raw"), "").1.contains("=?utf-8?q?"));
    assert_eq!(get(&format!("{page}mails/2"), "").0, 404);
    // Pages of others may not ask, by a name that leads here either.
    assert_eq!(get(&page, "Origin: https://evil.example").0, 403);
    assert_eq!(get(&page, "Host: evil.example").0, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stage_can_be_told_to_refuse() {
    let server = MailServer::alone(tokio::runtime::Handle::current()).await.unwrap();
    for (operation, fault, said) in [
        ("AUTH", Fault::Reply { code: 535, enhanced: [5, 7, 8] }, "SMTPAuthenticationError"),
        ("MAIL", Fault::Status(451), "SMTPSenderRefused"),
        ("DATA", Fault::Status(554), "SMTPDataError"),
        ("message", Fault::Reply { code: 554, enhanced: [5, 6, 0] }, "SMTPDataError"),
        ("message", Fault::Drop { after_bytes: 0 }, "SMTPServerDisconnected"),
        ("RCPT", Fault::Status(421), "SMTPRecipientsRefused"),
    ] {
        server.faults().add(Rule::from(fault).on(operation));
        assert_eq!(send(&server), said, "{operation} {fault:?}");
        server.faults().clear();
    }
    // One recipient of two: the mail goes to the other.
    server.faults().add(Rule::from(Fault::Status(550)).on("RCPT").path_contains("b@").times(1));
    assert_eq!(send(&server), "");
    assert_eq!(server.mails().pop().unwrap().to, ["c@example.com"]);
    assert_eq!(server.mails().len(), 1);
    // What was said at AUTH is nowhere written down.
    assert!(server.faults().requests().iter().all(|record| record.request.operation != "AUTH" || record.request.path.is_empty()));
}
