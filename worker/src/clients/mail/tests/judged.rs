//! What other people's programs make of our mails: Python's `email`, and `dkimpy`.

use std::{io::Write, process::Stdio};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use sandbox::judges::python;
use serde_json::{Value, json};
use shared::mail::DkimKey;

use super::*;

/// Headers in their order, parts in theirs, and what is wrong with it.
const PARSE: &str = "import email, email.policy, json, sys\n\
    mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)\n\
    parts = [part for part in mail.walk() if not part.is_multipart()]\n\
    defects = [repr(defect) for part in mail.walk() for defect in part.defects]\n\
    defects += [repr(defect) for value in mail.values() for defect in value.defects]\n\
    print(json.dumps({\n\
    \t'headers': {name.lower(): str(value) for name, value in mail.items()}, 'names': [name.lower() for name in mail.keys()],\n\
    \t'type': mail.get_content_type(), 'types': [part.get_content_type() for part in parts],\n\
    \t'texts': [part.get_content().replace('\\r\\n', '\\n') for part in parts], 'defects': defects}))";

fn parsed(composed: &Composed) -> Value {
    let script = ["-c", PARSE];
    serde_json::from_slice(&judge(python(&[]).unwrap().args(script), &composed.bytes)).unwrap()
}

fn judge(command: &mut std::process::Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(input));
    output.stdout
}

fn composed(mail: &Mail<'_>) -> Composed {
    Mailer::new(&config::Mail::default()).compose(mail).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_full_mail_says_what_it_should() {
    let unsubscribe = "https://api.example.com/v1/unsubscribe/abc?x=1&y=2".parse().unwrap();
    let mail = Mail {
        from: Party { name: Some("Böse, \"Quotes\" & Söhne"), address: "no-reply@bücher.example" },
        to: Party { name: Some("Ada Lovelace 🚀"), address: "ada+tag@example.com" },
        reply_to: Some(Party { name: Some("Inquirer"), address: "someone@example.org" }),
        subject: "Ihre Datei ist fertig – schön lang, damit sie gefaltet werden muss, und noch ein wenig länger als das",
        text: "Grüße\n\nvon uns.\n",
        html: Some("<p>Grüße <b>von uns</b>.</p>"),
        unsubscribe: Some(&unsubscribe),
        ..mail("0192f1c3-7d3a-7000-8000-000000000001")
    };
    let said = parsed(&composed(&mail));
    let header = |name: &str| said["headers"][name].as_str().unwrap_or_else(|| panic!("{name}: {said}")).to_owned();
    assert_eq!(said["defects"], json!([]), "{said}");
    assert_eq!((said["type"].as_str(), &said["types"]), (Some("multipart/alternative"), &json!(["text/plain", "text/html"])));
    assert_eq!(said["texts"], json!(["Grüße\n\nvon uns.\n", "<p>Grüße <b>von uns</b>.</p>"]));
    assert_eq!(header("subject"), mail.subject);
    assert!(header("from").contains("no-reply@xn--bcher-kva.example") && header("from").contains("Söhne"), "{}", header("from"));
    assert!(header("to").starts_with("Ada Lovelace 🚀") && header("to").ends_with("<ada+tag@example.com>"), "{}", header("to"));
    assert_eq!(header("reply-to"), "Inquirer <someone@example.org>");
    assert_eq!(header("message-id"), "<0192f1c3-7d3a-7000-8000-000000000001@xn--bcher-kva.example>");
    assert_eq!(header("date"), "Fri, 20 Nov 2026 12:00:00 +0000");
    assert_eq!(header("list-unsubscribe"), format!("<{unsubscribe}>"));
    assert_eq!(header("list-unsubscribe-post"), "List-Unsubscribe=One-Click");
    assert_eq!(header("auto-submitted"), "auto-generated");
    // The same mail is the same bytes: a second copy can be known as one.
    assert_eq!(composed(&mail).bytes, composed(&mail).bytes);
}

/// Python, as mail programs, reads encoded-words wherever they stand.
#[test]
fn a_subject_that_looks_encoded_is_shown_as_it_was_written() {
    let long = format!("{}=?utf-8?q?x?= {}", "wörter und ".repeat(9), "mehr 🚀".repeat(9));
    for subject in ["=?utf-8?q?Hi=0D=0ABcc:_x=40y.z?=", "x =?utf-8?b?SGkNCg==?= y", "=?", &long] {
        let said = parsed(&composed(&Mail { subject, ..mail("a") }));
        assert_eq!((said["headers"]["subject"].as_str(), &said["defects"]), (Some(subject), &json!([])));
    }
}

#[test]
fn nothing_that_is_said_becomes_a_header_or_a_recipient() {
    let plain: Value = parsed(&composed(&mail("a")))["names"].clone();
    for evil in [
        "x\r\nBcc: eve@example.com",
        "x\nBcc: eve@example.com",
        "x\rBcc: eve@example.com",
        "x\r\n\r\n<script>",
        "x\0y\u{b}\u{c}",
        "x\u{2028}Bcc: eve@example.com\u{85}y",
        "=?utf-8?q?x=0D=0ABcc:_eve@example.com?=",
        "\", <eve@example.com>, \"",
        "x\" <eve@example.com>",
        "(comment) <eve@example.com>",
        &format!("{} \r\n Bcc: eve@example.com", "long ".repeat(300)),
        &"ü".repeat(2_000),
    ] {
        let party = |address| Party { name: Some(evil), address };
        let mail = Mail {
            from: party("no-reply@acme.example"),
            to: party("ada@example.com"),
            reply_to: Some(party("reply@example.com")),
            subject: evil,
            text: evil,
            html: Some(evil),
            ..mail("a")
        };
        let composed = composed(&mail);
        let said = parsed(&composed);
        let mut names: Vec<_> = said["names"].as_array().unwrap().clone();
        names.retain(|name| name != "reply-to");
        names.sort_by_key(ToString::to_string);
        let mut expected = plain.as_array().unwrap().clone();
        expected.sort_by_key(ToString::to_string);
        // The parts have their own encodings; one text has it among the mail's headers.
        names.retain(|name| name != "content-transfer-encoding");
        expected.retain(|name| name != "content-transfer-encoding");
        assert_eq!(names, expected, "{evil:?}\n{}", String::from_utf8_lossy(&composed.bytes));
        assert_eq!(said["types"], json!(["text/plain", "text/html"]), "{evil:?}");
        assert_eq!((composed.to.as_ref() as &str, composed.from.as_ref() as &str), ("ada@example.com", "no-reply@acme.example"));
        let script = "import email, email.policy, email.utils, json, sys\n\
            mail = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)\n\
            print(json.dumps([[a.addr_spec for a in mail[name].addresses] for name in ('from', 'to', 'reply-to')]))";
        let addresses: Value = serde_json::from_slice(&judge(python(&[]).unwrap().args(["-c", script]), &composed.bytes)).unwrap();
        assert_eq!(addresses, json!([["no-reply@acme.example"], ["ada@example.com"], ["reply@example.com"]]), "{evil:?}");
        let longest = composed.bytes.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap();
        assert!(longest <= 999, "{longest}");
    }
    for address in [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@example.com\r\nBcc: eve@example.com",
        "ada@example.com>\r\nRCPT TO:<eve@example.com",
        "ada@example.com, eve@example.com",
        "<ada@example.com>",
        "\"ada eve\"@example.com",
        "ada eve@example.com",
        "ada@exa mple.com",
        "ada@127.0.0.1",
        "adä@example.com",
        "ada\0@example.com",
        &format!("{}@example.com", "a".repeat(300)),
    ] {
        let mail = Mail { to: Party { name: None, address }, ..mail("a") };
        let error = Mailer::new(&config::Mail::default()).compose(&mail).expect_err(address);
        assert!(!error.to_string().contains("eve"), "{error}");
    }
    for id in ["", "a b", "a>\r\nBcc: eve@example.com", "ü"] {
        assert_eq!(Mailer::new(&config::Mail::default()).compose(&mail(id)).unwrap_err(), MessageError::Id);
    }
    let clear = "http://api.example.com/".parse().unwrap();
    let error = Mailer::new(&config::Mail::default()).compose(&Mail { unsubscribe: Some(&clear), ..mail("a") }).unwrap_err();
    assert_eq!(error, MessageError::Unsubscribe);
}

#[test]
fn dkimpy_takes_our_signatures_and_no_changed_mail() {
    let rsa = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let ed25519 = Ed25519KeyPair::generate().unwrap();
    let rsa_private = BASE64_STANDARD.encode(AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap().as_ref());
    let ed25519_private = BASE64_STANDARD.encode(ed25519.to_pkcs8v1().unwrap().as_ref());
    let keys = [("OFFSTAGE_DKIM_RSA", rsa_private), ("OFFSTAGE_DKIM_ED", ed25519_private)];
    let dkim = keys.into_iter().map(|(name, key)| (name.to_owned(), Arc::new(DkimKey::read(&key).unwrap())));
    let mailer = Mailer::new(&config::Mail { dkim: dkim.collect(), ..config::Mail::default() });
    let unsubscribe = "https://api.example.com/v1/unsubscribe/abc".parse().unwrap();
    let zones = [
        ("OFFSTAGE_DKIM_RSA", format!("v=DKIM1; k=rsa; p={}", BASE64_STANDARD.encode(rsa.public_key().as_ref()))),
        ("OFFSTAGE_DKIM_ED", format!("v=DKIM1; k=ed25519; p={}", BASE64_STANDARD.encode(ed25519.public_key().as_ref()))),
    ];
    for (key, record) in zones {
        for (text, html) in [("Grüße\n\n\n", Some("<p>two  spaces \t and tabs</p>\n\n\n")), ("", None), ("plain \n text\n.\n", None)] {
            let signed = Mail {
                subject: "Schöne Grüße, und lang genug, dass die Zeile gefaltet werden muss: noch mehr Worte und noch mehr",
                text,
                html,
                unsubscribe: Some(&unsubscribe),
                dkim: Some(Dkim { domain: "acme.example", selector: "offstage", key }),
                ..mail("a")
            };
            let composed = mailer.compose(&signed).unwrap();
            let script = "import re, sys\n\
                import dkim\n\
                mail = sys.stdin.buffer.read()\n\
                asked = []\n\
                def dns(name, timeout=5):\n\
                \tasked.append(name)\n\
                \treturn sys.argv[1].encode()\n\
                def verified(mail):\n\
                \ttry:\n\
                \t\treturn dkim.verify(mail, dnsfunc=dns)\n\
                \texcept dkim.DKIMException:\n\
                \t\treturn False\n\
                assert verified(mail), 'not verified'\n\
                assert asked[0] == b'offstage._domainkey.acme.example.', asked\n\
                signed = re.search(rb'h=([^;]*);', mail).group(1).lower().split()\n\
                signed = b''.join(signed).split(b':')\n\
                for name in (b'from', b'to', b'subject', b'date', b'message-id', b'list-unsubscribe', b'list-unsubscribe-post'):\n\
                \tassert name in signed, name\n\
                for changed in (\n\
                \tmail.replace(b'unsubscribe/abc', b'unsubscribe/evil'),\n\
                \tmail.replace(b'One-Click', b'Two-Click'),\n\
                \tmail.replace(b'Date: Fri', b'Date: Sat'),\n\
                \tmail + b'more\\r\\n',\n\
                \tmail.replace(b'MIME-Version:', b'From: eve@example.com\\r\\nMIME-Version:'),\n\
                \tmail.replace(b'MIME-Version:', b'Reply-To: eve@example.com\\r\\nMIME-Version:'),\n\
                ):\n\
                \tassert changed != mail\n\
                \tassert not verified(changed), changed";
            let mut command = python(&["dkimpy[ed25519]==1.1.8"]).unwrap();
            judge(command.args(["-c", script, &record]), &composed.bytes);
        }
    }
    let signed = |dkim| mailer.compose(&Mail { dkim: Some(dkim), ..mail("a") }).unwrap_err();
    let dkim = Dkim { domain: "acme.example", selector: "offstage", key: "OFFSTAGE_DKIM_NONE" };
    assert_eq!(signed(dkim), MessageError::NoKey("OFFSTAGE_DKIM_NONE".into()));
    assert_eq!(signed(Dkim { key: "OFFSTAGE_DKIM_RSA", selector: "a; b=c\r\nBcc", ..dkim }), MessageError::DkimName);
}
