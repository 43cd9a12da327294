use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shared::outbound::NotAllowed;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const WITHIN: Duration = Duration::from_secs(10);

/// Writes `answer` on each connection and then `drip` for ever, where there is one; counts connections.
async fn server(answer: &'static str, drip: Option<&'static str>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut piece = [0; 4_096];
                let _ = stream.read(&mut piece).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                while let Some(drip) = drip {
                    if stream.write_all(drip.as_bytes()).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    (port, count)
}

fn open() -> Outbound {
    Outbound::new(Guard::read("loopback").unwrap())
}

fn call(url: &str, reach: Reach) -> Call {
    Call::post(url.parse().unwrap(), reach, Bytes::from_static(b"hello"), WITHIN)
}

async fn refused(outbound: &Outbound, url: &str, reach: Reach) -> NotAllowed {
    match outbound.send(call(url, reach)).await {
        Err(OutboundError::NotAllowed { why, .. }) => why,
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn no_connection_is_made_to_what_is_not_public() {
    let (port, connections) = server("HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n", None).await;
    let closed = Outbound::default();
    // Literally, whatever way it is written, and by a name that leads there.
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "localhost"] {
        refused(&closed, &format!("https://{host}:{port}/"), Reach::Public).await;
    }
    refused(&open(), &format!("https://[::ffff:127.0.0.1]:{port}/"), Reach::Public).await;
    assert_eq!(refused(&closed, "https://10.0.0.1/", Reach::Loopback).await, NotAllowed::Elsewhere);
    assert_eq!(connections.load(Ordering::SeqCst), 0);

    // With the operator's leave, or for whom it is meant.
    for (outbound, reach) in [(open(), Reach::Public), (Outbound::default(), Reach::Inside), (Outbound::default(), Reach::Loopback)] {
        for host in ["127.0.0.1", "localhost"] {
            let answer = outbound.send(call(&format!("http://{host}:{port}/"), reach)).await.unwrap();
            assert_eq!(answer.status, 200);
        }
    }
}

#[test]
fn of_a_names_addresses_only_those_are_left_that_may_be_called() {
    let found = |list: &[&str]| list.iter().map(|address| format!("{address}:0").parse().unwrap()).collect::<Vec<_>>();
    let allowed = |list: &[&str]| Resolver::allowed(&Guard::default(), Reach::Public, found(list).into_iter());
    assert_eq!(allowed(&["10.0.0.1", "8.8.8.8", "[::1]", "[2606:4700::1]"]).unwrap(), found(&["8.8.8.8", "[2606:4700::1]"]));
    assert!(allowed(&["10.0.0.1", "[::ffff:8.8.8.8]", "[64:ff9b::127.0.0.1]"]).is_err());
    // Nothing found is the name server's answer, and no refusal of ours.
    assert!(allowed(&[]).unwrap().is_empty());
    assert_eq!(allowed(&["8.8.8.8"; 50]).unwrap().len(), 8);
}

#[tokio::test]
async fn a_connection_of_one_reach_is_no_way_around_for_another() {
    let (port, _) = server("HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n", None).await;
    let outbound = Outbound::default();
    let url = format!("http://localhost:{port}/");
    outbound.send(call(&url, Reach::Inside)).await.unwrap();
    refused(&outbound, &url, Reach::Public).await;
    refused(&outbound, &url.replace("http:", "https:"), Reach::Public).await;
}

#[tokio::test]
async fn redirects_are_answers() {
    let (elsewhere, connections) = server("HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n", None).await;
    let answer: &'static str =
        Box::leak(format!("HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:{elsewhere}/\r\ncontent-length: 0\r\n\r\n").into_boxed_str());
    let (port, _) = server(answer, None).await;
    assert_eq!(open().send(call(&format!("http://127.0.0.1:{port}/"), Reach::Public)).await.unwrap().status, 307);
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_has_a_cap_and_the_same_deadline() {
    let (port, _) = server("HTTP/1.1 500 x\r\n\r\n", Some("a")).await;
    let url = format!("http://127.0.0.1:{port}/");
    // Without end: the cap ends it.
    let answer = open().send(Call { keep_of_refusal: 3, ..call(&url, Reach::Public) }).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_ref(), answer.is_cut), (500, b"aaa".as_slice(), true));
    // A byte now and then: the deadline does.
    let slow = Call { within: Duration::from_millis(300), keep_of_refusal: 1 << 20, ..call(&url, Reach::Public) };
    let answer = open().send(slow).await.unwrap();
    assert!(answer.is_cut && !answer.body.is_empty());
    // A success' body is not waited for where nobody wants it.
    let (port, _) = server("HTTP/1.1 201 x\r\n\r\n", Some("a")).await;
    let answer = open().send(call(&format!("http://127.0.0.1:{port}/"), Reach::Public)).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.len()), (201, 0));
}

#[tokio::test]
async fn what_has_no_answer_says_whether_it_may_have_arrived() {
    let (silent, _) = server("", Some("")).await;
    let late = Call { within: Duration::from_millis(200), ..call(&format!("http://127.0.0.1:{silent}/"), Reach::Public) };
    let error = open().send(late).await.unwrap_err();
    assert!(matches!(error, OutboundError::Late { .. }) && error.may_have_arrived(), "{error:?}");
    let (cut, _) = server("", None).await;
    let error = open().send(call(&format!("http://127.0.0.1:{cut}/?secret"), Reach::Public)).await.unwrap_err();
    assert!(matches!(error, OutboundError::Cut { .. }) && error.may_have_arrived(), "{error:?}");
    assert!(!format!("{error:?}").contains("secret"));
    let error = open().send(call("http://127.0.0.1:1/", Reach::Public)).await.unwrap_err();
    assert!(matches!(error, OutboundError::Unreached { .. }) && !error.may_have_arrived(), "{error:?}");
    // TLS is told apart: the other side speaks something else.
    let (plain, _) = server("HTTP/1.1 400 x\r\n\r\n", None).await;
    let error = open().send(call(&format!("https://127.0.0.1:{plain}/"), Reach::Public)).await.unwrap_err();
    assert!(error.to_string().contains("TLS") && !error.may_have_arrived(), "{error:?}");
}

#[test]
fn pauses_are_seconds_or_dates_and_no_longer_than_a_day() {
    let now = "2026-11-20T12:00:00Z".parse().unwrap();
    let answer = |value: &'static str| {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        Answer { status: StatusCode::TOO_MANY_REQUESTS, headers, body: Bytes::new(), is_cut: false }.retry_after(now)
    };
    for (value, seconds) in [
        ("0", Some(0)),
        (" 7 ", Some(7)),
        ("99999999", Some(86_400)),
        ("Fri, 20 Nov 2026 12:01:00 GMT", Some(60)),
        ("Fri, 20 Nov 2026 11:00:00 GMT", Some(0)),
        ("Sun, 20 Dec 2026 11:00:00 GMT", Some(86_400)),
        ("soon", None),
        ("-1", None),
        ("", None),
    ] {
        assert_eq!(answer(value), seconds.map(Duration::from_secs), "{value}");
    }
}
